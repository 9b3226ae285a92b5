// libFuzzer: packed weights of any bytes and any size, in the place of those that an encoder has packed.
// A wrong size is std::invalid_argument; with the right one a forward stays inside its memory, whatever it computes.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fuzz_model.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace distilfast;
  static const std::vector<FuzzModel> models = fuzz_models();
  if (size < 4) return 0;
  const FuzzModel& model = models[data[0] % models.size()];
  const std::span<const std::byte> right = model.encoder().model().packed_weights.bytes();
  // A copy on the boundary of a cache line, some of its bytes replaced, cut or not by the input.
  const std::size_t cut = data[1] < 200 ? 0 : 1 + std::size_t{data[2]} * 64 % right.size();
  AlignedBytes packed(right.size() - cut);
  std::memcpy(packed.data(), right.data(), packed.size());
  for (std::size_t i = 3; i + 3 <= size; i += 3)
    packed.data()[(std::size_t{data[i]} << 8 | data[i + 1]) % packed.size()] = static_cast<std::byte>(data[i + 2]);
  try {
    const std::unique_ptr<Encoder> encoder = model.over({packed.data(), packed.size()});
    const std::int32_t ids[] = {1, 2, 3, 4, 5}, places[] = {0, 1, 2, 0, 1}, ends[] = {0, 3, 5}, rows[] = {0, 3};
    const Index columns = model.sizes().head_columns;
    std::vector<float> head(static_cast<std::size_t>(2 * columns));
    encoder->forward({ids, places, nullptr, ends, 2, rows, 2}, {nullptr, head.data()});
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
