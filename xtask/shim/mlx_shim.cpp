// What mlx-rs expects of macOS and Linux lacks.
#include <cstdint>
#include <cstring>
#include <ctime>
#include <exception>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/array.h"

// mlx-rs seeds its random state with Darwin's coarse monotonic clock. Nothing depends on the unit.
extern "C" uint64_t mach_approximate_time(void) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// mlx-c declares its half precision accessors only where the C compiler has the types, which excludes x86-64.
// Both types travel as their bits.
namespace {

template <typename Half>
int item_bits(uint16_t* bits, mlx_array arr) {
  static_assert(sizeof(Half) == sizeof(uint16_t));
  try {
    const Half value = mlx_array_get_(arr).item<Half>();
    std::memcpy(bits, &value, sizeof(value));
    return 0;
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return 1;
  }
}

// Null where there is nothing to point at, as mlx-c's own accessors have it.
template <typename Half>
const uint16_t* data_bits(mlx_array arr) {
  try {
    return reinterpret_cast<const uint16_t*>(mlx_array_get_(arr).data<Half>());
  } catch (const std::exception& e) {
    mlx_error(e.what());
    return nullptr;
  }
}

} // namespace

#ifndef HAS_FLOAT16
extern "C" int mlx_array_item_float16(uint16_t* bits, const mlx_array arr) {
  return item_bits<mlx::core::float16_t>(bits, arr);
}
extern "C" const uint16_t* mlx_array_data_float16(const mlx_array arr) {
  return data_bits<mlx::core::float16_t>(arr);
}
#endif

#ifndef HAS_BFLOAT16
extern "C" int mlx_array_item_bfloat16(uint16_t* bits, const mlx_array arr) {
  return item_bits<mlx::core::bfloat16_t>(bits, arr);
}
extern "C" const uint16_t* mlx_array_data_bfloat16(const mlx_array arr) {
  return data_bits<mlx::core::bfloat16_t>(arr);
}
#endif
