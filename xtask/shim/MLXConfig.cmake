# Stands in for the wheel's MLXConfig.cmake: headers only (see CMakeLists.txt).
add_library(mlx INTERFACE IMPORTED)
target_include_directories(mlx SYSTEM INTERFACE "${MLX_INCLUDE}")
target_compile_features(mlx INTERFACE cxx_std_20)
