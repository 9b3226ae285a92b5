#include "streams.h"

#include <algorithm>
#include <cstdlib>

namespace cuda_host {

bool Point::is_reached() const { return !stream || stream->reached >= number; }

std::shared_ptr<Stream> Streams::create(int device, bool is_blocking) {
  remove_destroyed();
  return streams_.emplace_back(std::make_shared<Stream>(Stream{device, is_blocking}));
}

// The work of a destroyed stream still runs.
void Streams::remove_destroyed() {
  std::erase_if(streams_, [](const auto& stream) { return stream.use_count() == 1 && stream->items.empty(); });
}

void Streams::seed(unsigned number) { random_.seed(number + 1); }

void Streams::enqueue(const std::shared_ptr<Stream>& stream, Item item) {
  stream->last_kernel = nullptr;
  stream->items.push_back(std::move(item));
}

std::vector<Stream*> Streams::runnable() const {
  std::vector<Stream*> found;
  for (const auto& stream : streams_) {
    if (stream->items.empty()) continue;
    const std::vector<Point>& after = stream->items.front().after;
    if (std::all_of(after.begin(), after.end(), [](const Point& point) { return point.is_reached(); }))
      found.push_back(stream.get());
  }
  return found;
}

// The stream that has to run next for the goal. Points refer to what was enqueued before, so there is always one.
Stream* Streams::needed_for(const Point& goal) const {
  Stream* stream = goal.stream.get();
  for (;;) {
    const std::vector<Point>& after = stream->items.front().after;
    const auto missing =
        std::find_if(after.begin(), after.end(), [](const Point& point) { return !point.is_reached(); });
    if (missing == after.end()) return stream;
    stream = missing->stream.get();
  }
}

void Streams::step(Stream& stream) {
  const Item item = std::move(stream.items.front());
  stream.items.pop_front();
  ++stream.reached;
  try {
    if (item.run) item.run();
  } catch (...) {
    forget_everything();
    throw;
  }
}

// A real device is lost; this one goes on without what was enqueued.
void Streams::forget_everything() {
  for (const auto& stream : streams_) {
    stream->reached = stream->enqueued();
    stream->items.clear();
  }
}

void Streams::wait(const Point& goal) {
  const auto order = static_cast<Order>(choose(3));
  while (!goal.is_reached()) {
    Stream* const needed = needed_for(goal);
    std::vector<Stream*> others = runnable();
    if (order == Order::others_first) std::erase(others, needed);
    step(order == Order::only_needed || others.empty() ? *needed : *others[choose(others.size())]);
  }
}

void Streams::wait_for_device(int device) {
  std::vector<Point> goals;
  for (const auto& stream : streams_)
    if (stream->device == device && !stream->items.empty()) goals.push_back(end_of(stream));
  for (const Point& goal : goals) wait(goal);
}

void Streams::run_one() {
  const std::vector<Stream*> streams = runnable();
  if (!streams.empty()) step(*streams[choose(streams.size())]);
}

}  // namespace cuda_host
