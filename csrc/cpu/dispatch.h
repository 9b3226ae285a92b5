// Which kernels this machine can run.
#pragma once

#include <string_view>
#include <vector>

#include "cpu/kernels.h"

namespace distilfast {

struct Isa {
  const char* name;
  const char* missing;     // why it cannot run here, as the end of a sentence; null where it can
  const Kernels* kernels;  // null: not compiled for this architecture

  bool supported() const { return !missing; }
};

// Every ISA there is, the fastest first; `ref` is last and always supported.
const std::vector<Isa>& isas();

// The kernels called `name`, or of the first supported ISA where it is empty; throws std::invalid_argument with one
// sentence for a name that is unknown or not supported here. Never another ISA than the one asked for.
const Kernels& kernels_for(std::string_view name);

}  // namespace distilfast
