// See misuses.cpp.
#pragma once

#include <string>
#include <vector>

namespace distilfast::cuda {

// Does what the name says; throws what a call reports.
void misuse(const std::string& what);
std::vector<std::string> misuses();

// A value that depends on the order of work, where what orders it is there, and where it is missing.
float ordered_result(const std::string& what, bool right);

// Creates a stream with its event, an allocation and a pinned one, and loses them.
void leak();

}  // namespace distilfast::cuda
