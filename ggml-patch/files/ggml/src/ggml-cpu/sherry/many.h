#pragma once

#include "tile.h"

namespace ggml::cpu::sherry {

// what is wrong with a kernel's unit for many tokens, or nullptr: a system may keep it from a process
const char * fault_of_many(const ggml_sherry_tile_kernel * kernel);

constexpr int MANY_TIMED_TOKENS = 64;

// its 10^9 weights times tokens per second, of a small matrix that stays in cache
double rate_of_many(const ggml_sherry_tile_kernel * kernel);

}  // namespace ggml::cpu::sherry
