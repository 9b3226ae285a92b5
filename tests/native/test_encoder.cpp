// The whole encoder: its allocations, its callers, and that neither threads nor a fork change a bit.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>
#include <utility>

#include "allocations.h"
#include "check.h"
#include "cpu/checksum.h"
#include "cpu/encoder.h"

using namespace distilfast;

namespace {

constexpr EncoderShape shape{50, 5, 2, 70, 1e-12f, Activation::gelu};  // nothing a multiple of a vector
constexpr Index vocabulary = 90;
const std::vector<HeadLinear> head = {
    {50, Activation::gelu, true}, {30, Activation::relu, false}, {3, Activation::none, false}};

class Tensors {
 public:
  HostTensor operator()(const std::string& name) {
    if (name == "embed.token_type") return {};
    auto& values = values_[name];
    // Large enough for each tensor of the shape; the seed is the order of first use.
    if (values.empty()) values = numbers(vocabulary * 3 * 70, static_cast<unsigned>(values_.size() * 977));
    return {values.data(), values.size()};
  }

 private:
  std::map<std::string, std::vector<float>> values_;
};

struct Fixture {
  Tensors tensors;
  std::unique_ptr<Encoder> encoder;

  Fixture(const Kernels& kernels, int threads) {
    encoder = std::make_unique<Encoder>(
        shape, head, [this](const std::string& name) { return tensors(name); }, kernels, Precision::fp32,
        std::span<const std::byte>(), threads);
  }
};

struct Batch {
  std::vector<std::int32_t> ids, places, ends{0}, rows;

  explicit Batch(const std::vector<int>& lengths) {
    for (const int length : lengths) {
      rows.push_back(ends.back());
      for (int i = 0; i < length; ++i) {
        ids.push_back((ends.back() * 7 + i * 13) % vocabulary);
        places.push_back(i);
      }
      ends.push_back(static_cast<std::int32_t>(ids.size()));
    }
  }
  ForwardInput input() const {
    return {ids.data(),
            places.data(),
            nullptr,
            ends.data(),
            static_cast<Index>(ends.size()) - 1,
            rows.data(),
            static_cast<Index>(rows.size())};
  }
};

std::vector<float> head_of(const Encoder& encoder, const Batch& batch) {
  std::vector<float> out(batch.rows.size() * 3);
  encoder.forward(batch.input(), {nullptr, out.data()});
  return out;
}

}  // namespace

TEST(an_encoder_over_packed_weights_reads_no_linear_tensor) {
  for (const Kernels* kernels : supported_kernels())
    for (const Precision precision : {Precision::fp32, Precision::bf16}) {
      Tensors tensors;
      bool only_norms = false;
      const FindTensor find = [&](const std::string& name) {
        CHECK(!only_norms || name.find("norm") != std::string::npos || name.starts_with("embed."));
        return tensors(name);
      };
      const Encoder packs(shape, head, find, *kernels, precision, {}, 2);
      only_norms = true;
      const std::span<const std::byte> packed = packs.model().packed_weights.bytes();
      const Encoder reads(shape, head, find, *kernels, precision, packed, 2);
      CHECK(reads.model().packed_weights.bytes().data() == packed.data());
      const Batch batch({3, 40, 1, 17});
      CHECK(head_of(reads, batch) == head_of(packs, batch));
      bool refused = false;
      try {
        const Encoder wrong(shape, head, find, *kernels, precision, packed.first(packed.size() - 64), 2);
      } catch (const std::invalid_argument&) {
        refused = true;
      }
      CHECK(refused);
    }
}

TEST(packed_int8_weights_that_name_other_channels_are_refused) {
  for (const Kernels* kernels : supported_kernels()) {
    Tensors tensors;
    const FindTensor find = [&](const std::string& name) {
      static const std::vector<float> channels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
      return name.ends_with("outlier_channels") ? HostTensor{channels.data(), channels.size()} : tensors(name);
    };
    const Encoder packs(shape, head, find, *kernels, Precision::int8, {}, 1);
    const std::span<const std::byte> right = packs.model().packed_weights.bytes();
    Buffer packed(right.size());
    int refused = 0;
    for (std::size_t word = 0; word < 300; ++word) {  // the header of the first linear is among them
      std::memcpy(packed.data(), right.data(), right.size());
      std::memset(packed.data() + 4 * word, 0x7f, 4);  // large as an int32 and as a float
      try {
        const Encoder reads(shape, head, find, *kernels, Precision::int8, {packed.data(), packed.size()}, 1);
      } catch (const std::invalid_argument&) {
        ++refused;
      }
    }
    CHECK(refused == outlier_count(shape.width));
  }
}

TEST(packed_weights_have_the_same_bytes_with_any_threads) {
  for (const Kernels* kernels : supported_kernels()) {
    const Fixture one(*kernels, 1), more(*kernels, 3);
    const std::span<const std::byte> a = one.encoder->model().packed_weights.bytes(),
                                     b = more.encoder->model().packed_weights.bytes();
    CHECK(a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
  }
}

// Sizes straddle the eight lanes and the piece that a thread takes at a time.
TEST(a_checksum_sees_every_changed_bit_with_any_threads) {
  Team one(1), more(3);
  for (const std::size_t size : {1, 63, 64, 65, 1 << 20, (1 << 20) + 1, (3 << 20) - 1}) {
    std::vector<std::byte> block(size);
    for (std::size_t i = 0; i < size; ++i) block[i] = static_cast<std::byte>(i * 131 >> 3);
    const std::uint64_t wanted = checksum(block, one);
    CHECK(checksum(block, more) == wanted);
    for (const std::size_t at : {std::size_t{0}, size / 3, size / 2, size - 1})
      for (int bit = 0; bit < 8; ++bit) {
        block[at] ^= static_cast<std::byte>(1 << bit);
        CHECK(checksum(block, more) != wanted);
        block[at] ^= static_cast<std::byte>(1 << bit);
      }
    CHECK(checksum(std::span(block).first(size - 1), one) != wanted);
    block.push_back(std::byte{0});
    CHECK(checksum(block, one) != wanted);
  }
}

// A plain sum misses these: two words of a lane swapped, or the top bits of both flipped.
TEST(a_checksum_sees_changes_that_cancel_out) {
  Team team(1);
  std::vector<std::uint64_t> words(256);
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = i * i;
  const auto sum = [&] { return checksum(std::as_bytes(std::span(words)), team); };
  const std::uint64_t wanted = sum();
  std::swap(words[8], words[16]);
  CHECK(sum() != wanted);
  std::swap(words[8], words[16]);
  words[8] ^= std::uint64_t{1} << 63, words[16] ^= std::uint64_t{1} << 63;
  CHECK(sum() != wanted);
}

TEST(skipping_rows_changes_no_bit) {
  for (const Kernels* kernels : supported_kernels()) {
    const Fixture fixture(*kernels, 2);
    const Batch batch({3, 40, 1, 17});
    std::vector<float> hidden(batch.ids.size() * 50), all(batch.rows.size() * 3);
    fixture.encoder->forward(batch.input(), {hidden.data(), all.data()});
    CHECK(head_of(*fixture.encoder, batch) == all);
  }
}

TEST(threads_and_chunks_change_no_bit) {
  std::vector<int> lengths;
  for (int i = 0; i < 90; ++i) lengths.push_back(1 + i * 7 % 40);  // some 1,800 tokens: more than one chunk
  const Batch batch(lengths);
  for (const Kernels* kernels : supported_kernels()) {
    const std::vector<float> wanted = head_of(*Fixture(*kernels, 1).encoder, batch);
    for (const int threads : {2, 3, 7}) CHECK(head_of(*Fixture(*kernels, threads).encoder, batch) == wanted);
  }
}

TEST(a_forward_that_is_ended_stops_after_a_chunk_and_gives_its_workspace_back) {
  const Batch batch(std::vector<int>(90, 30));  // 17 sequences in each chunk
  const Fixture fixture(kernels_for(forced_isa()), 2);
  const std::vector<float> wanted = head_of(*fixture.encoder, batch);
  const std::size_t scratch = fixture.encoder->scratch_bytes();
  std::vector<float> out(wanted.size(), -1);
  int asked = 0;
  fixture.encoder->forward(batch.input(), {nullptr, out.data()}, {}, [&] { return ++asked < 2; });
  CHECK(asked == 2 && fixture.encoder->scratch_bytes() == scratch);
  const std::ptrdiff_t done = 2 * 17 * 3;
  CHECK(std::equal(out.begin(), out.begin() + done, wanted.begin()));
  CHECK(std::all_of(out.begin() + done, out.end(), [](float x) { return x == -1; }));
  CHECK(head_of(*fixture.encoder, batch) == wanted);
}

TEST(a_second_forward_allocates_nothing) {
  for (const int threads : {1, 2}) {
    const Fixture fixture(kernels_for(forced_isa()), threads);
    const Batch batch({3, 40, 1, 17});
    std::vector<float> out(batch.rows.size() * 3);
    const ForwardInput input = batch.input();
    fixture.encoder->forward(input, {nullptr, out.data()});
    const long before = allocations;
    fixture.encoder->forward(input, {nullptr, out.data()});
    CHECK(allocations == before);
  }
}

TEST(several_callers_at_once_get_their_own_answers) {
  for (const int threads : {1, 2}) {
    const Fixture fixture(kernels_for(forced_isa()), threads);
    const Batch first({5, 30}), second({40});
    const auto wanted_first = head_of(*fixture.encoder, first), wanted_second = head_of(*fixture.encoder, second);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
      callers.emplace_back([&, caller] {
        for (int i = 0; i < 50; ++i) {
          const bool one = (caller + i) % 2 == 0;
          wrong += head_of(*fixture.encoder, one ? first : second) != (one ? wanted_first : wanted_second);
        }
      });
    for (std::thread& caller : callers) caller.join();
    CHECK(wrong == 0);
  }
}

TEST(sixteen_callers_of_several_encoders_share_the_pool) {
  const Fixture fixtures[] = {
      {kernels_for(forced_isa()), 2}, {kernels_for(forced_isa()), 5}, {kernels_for(forced_isa()), 16}};
  const Batch batch({5, 30});
  const auto wanted = head_of(*fixtures[0].encoder, batch);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 16; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 5; ++i) wrong += head_of(*fixtures[(caller + i) % 3].encoder, batch) != wanted;
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(a_child_answers_after_a_fork) {
  const Fixture fixture(kernels_for(forced_isa()), 3);
  const Batch batch({5, 30});
  const auto wanted = head_of(*fixture.encoder, batch);  // the parent's workers run by now
  const pid_t child = fork();
  if (child == 0) _exit(head_of(*fixture.encoder, batch) == wanted ? 0 : 1);
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(head_of(*fixture.encoder, batch) == wanted);
}

TEST(every_task_runs_once) {
  for (const int threads : {1, 2, 5, 70}) {  // 70: some threads have no share of their own
    Team team(threads);
    for (const Index tasks : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(tasks));
      std::atomic<bool> worker_in_range{true};
      team.run(tasks, [&](Index i, int worker) {
        ++runs[static_cast<std::size_t>(i)];
        if (worker < 0 || worker >= threads) worker_in_range = false;
      });
      for (const auto& count : runs) CHECK(count == 1);
      CHECK(worker_in_range);
    }
  }
}

// Rows stay in the caches of one core where a thread has the same share in each job.
TEST(a_thread_takes_its_own_share_first) {
  constexpr Index tasks = 100;
  for (int job = 0; job < 100; ++job) {
    std::vector<Index> taken[2];
    Team(2).run(tasks, [&](Index i, int worker) {
      taken[worker].push_back(i);
      for (volatile int k = 0; k < 2000;) k = k + 1;  // so that both threads take some
    });
    for (const Index worker : {0, 1}) {
      const auto is_own = [&](Index i) { return i * 2 / tasks == worker; };
      CHECK(std::is_partitioned(taken[worker].begin(), taken[worker].end(), is_own));
    }
  }
}

namespace {

// How often each task of a job ran, and whether a worker ever ran two of them at once.
struct Tally {
  Tally(Index tasks, int threads) : runs(static_cast<std::size_t>(tasks)), busy(static_cast<std::size_t>(threads)) {}

  template <class Work>
  void count(Index task, int worker, Work work) {
    if (busy[static_cast<std::size_t>(worker)].exchange(true)) alone = false;
    ++runs[static_cast<std::size_t>(task)];
    work();
    busy[static_cast<std::size_t>(worker)] = false;
  }
  bool right() const {
    for (const auto& each : runs)
      if (each != 1) return false;
    return alone;
  }

  std::vector<std::atomic<int>> runs;
  std::vector<std::atomic<bool>> busy;
  std::atomic<bool> alone{true};
};

}  // namespace

TEST(interrupted_jobs_run_every_task_once) {
  constexpr Index tasks = 400;
  constexpr int threads = 3;
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      Team team(threads);
      Tally tally(tasks, threads);
      team.run(tasks, [&](Index i, int worker) {
        // Long enough for the waiting callers to interrupt a job many times.
        tally.count(i, worker, [] {
          for (volatile int k = 0; k < 20000;) k = k + 1;
        });
      });
      right += tally.right();
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 4);
}

TEST(a_short_job_does_not_wait_for_a_long_one) {
  constexpr Index tasks = 500000;
  std::atomic<bool> begun{false}, arrived{false}, done{false}, overtaken{false};
  std::thread longer([&] {
    Team team(2);
    team.run(tasks, [&](Index i, int) {
      begun = true;
      while (!arrived) std::this_thread::yield();
      std::this_thread::yield();
      if (i >= tasks - 2) overtaken = done.load();
    });
  });
  while (!begun) std::this_thread::yield();
  arrived = true;
  Team(2).run(2, [&](Index, int) { done = true; });
  longer.join();
  CHECK(overtaken);
}

TEST(an_urgent_thread_waits_for_begun_tasks_only) {
  std::atomic<Index> ran{0};
  std::atomic<bool> stop{false};
  std::thread longer([&] {
    Team team(2);
    while (!stop) team.run(100, [&](Index, int) { ++ran; });
  });
  while (ran == 0) std::this_thread::yield();
  Index before = 0, after = 0;
  {
    const Urgent urgent;
    Team team(2);
    team.run(2, [](Index, int) {});  // the other's tasks have ended when this begins
    before = ran;
    for (int job = 0; job < 100; ++job) team.run(2, [](Index, int) { std::this_thread::yield(); });
    after = ran;
  }
  while (ran == after) std::this_thread::yield();  // it goes on
  stop = true;
  longer.join();
  CHECK(before == after);
}

TEST(urgent_and_other_jobs_run_every_task_once) {
  constexpr Index tasks = 100;
  constexpr int threads = 3;
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&, caller] {
      for (int job = 0; job < 20; ++job) {
        std::optional<Urgent> urgent;
        if ((caller + job) % 3 == 0) urgent.emplace();
        Tally tally(tasks, threads);
        Team(threads).run(tasks, [&](Index i, int worker) {
          tally.count(i, worker, [] {
            for (volatile int k = 0; k < 2000;) k = k + 1;
          });
        });
        right += tally.right();
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 120);
}

TEST(a_missing_tensor_is_named) {
  Tensors tensors;
  std::string message;
  try {
    const Encoder encoder(
        shape, {},
        [&](const std::string& name) { return name == "layer.1.ffn_in.bias" ? HostTensor{} : tensors(name); },
        kernels_for("ref"), Precision::fp32, {}, 1);
  } catch (const std::invalid_argument& error) {
    message = error.what();
  }
  CHECK(message == "The weights lack layer.1.ffn_in.bias.");
}
