// libstdc++ before 13 has no std::format, which mlx-c uses in error messages; {fmt} is what it was standardized from.
// Included ahead of every source of mlx-c on such compilers.
#pragma once
#define FMT_HEADER_ONLY
#include <fmt/format.h>

namespace std {
using fmt::format;
} // namespace std
