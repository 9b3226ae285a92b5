// libFuzzer: arrays of a batch, of any length and any numbers, through the checks of the bindings to a small encoder.
// What the checks let through must stay inside every table; what they refuse is std::invalid_argument.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/checks.h"
#include "fuzz_model.h"

namespace distilfast {
namespace {

class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t next() { return size_ == 0 ? 0 : (--size_, *data_++); }

  // Mostly small numbers, now and then four bytes as they are.
  std::int32_t number() {
    const std::uint8_t kind = next();
    if (kind < 240) return kind % 40 - 2;
    std::uint32_t whole = 0;
    for (int i = 0; i < 4; ++i) whole = whole << 8 | next();
    return static_cast<std::int32_t>(whole);
  }

  std::vector<std::int32_t> numbers() {
    std::vector<std::int32_t> found(next() % 24);
    for (std::int32_t& each : found) each = number();
    return found;
  }

  // Increasing, as most of what a caller sends, but for some bytes.
  std::vector<std::int32_t> increasing(std::int32_t first) {
    std::vector<std::int32_t> found(next() % 12);
    for (std::int32_t& each : found) {
      each = first;
      const std::uint8_t step = next();
      first = static_cast<std::int32_t>(static_cast<std::uint32_t>(first) +
                                        (step < 250 ? 1u + step % 4u : static_cast<std::uint32_t>(number())));
    }
    return found;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

void run(Bytes bytes) {
  static const std::vector<FuzzModel> models = fuzz_models();
  const FuzzModel& model = models[bytes.next() % models.size()];
  const std::uint8_t given = bytes.next();
  std::vector<std::int32_t> ids = bytes.numbers(), positions = bytes.numbers(), types = bytes.numbers();
  if (given & 1) positions.resize(ids.size()), types.resize(ids.size());
  std::vector<std::int32_t> cu_seqlens = bytes.increasing(0), rows = bytes.increasing(0), columns = bytes.increasing(0);
  if (given & 2) cu_seqlens.push_back(static_cast<std::int32_t>(ids.size()));
  const auto optional = [](bool there, const std::vector<std::int32_t>& numbers) {
    return there ? std::optional<GivenNumbers>(numbers) : std::nullopt;
  };
  const HostBatch batch({ids, positions, optional(given & 4, types), model.tables()}, cu_seqlens,
                        optional(given & 8, rows), optional(given & 16, columns), model.sizes());
  const ForwardInput input = batch.input();
  require(!input.columns || batch.has_head(), "columns need a head.");
  const Index head_columns = input.columns ? input.num_columns : model.sizes().head_columns;
  std::vector<float> hidden(static_cast<std::size_t>(batch.tokens() * model.sizes().width));
  std::vector<float> head(static_cast<std::size_t>(input.num_rows * head_columns));
  model.encoder().forward(input, {given & 32 ? hidden.data() : nullptr, batch.has_head() ? head.data() : nullptr});
}

}  // namespace
}  // namespace distilfast

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    distilfast::run({data, size});
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
