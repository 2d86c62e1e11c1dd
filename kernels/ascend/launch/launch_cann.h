// The launcher of one kernel under CANN: cann.cmake makes a source per kernel that includes the kernel and then this macro.
// Only bisheng compiles it.
#pragma once

#include <cstdint>
#include <cstring>

#define SIGMOE_POINTERS_1 pointer(0)
#define SIGMOE_POINTERS_2 SIGMOE_POINTERS_1, pointer(1)
#define SIGMOE_POINTERS_3 SIGMOE_POINTERS_2, pointer(2)
#define SIGMOE_POINTERS_4 SIGMOE_POINTERS_3, pointer(3)
#define SIGMOE_POINTERS_5 SIGMOE_POINTERS_4, pointer(4)
#define SIGMOE_POINTERS_6 SIGMOE_POINTERS_5, pointer(5)
#define SIGMOE_POINTERS_7 SIGMOE_POINTERS_6, pointer(6)
#define SIGMOE_POINTERS_8 SIGMOE_POINTERS_7, pointer(7)
#define SIGMOE_POINTERS_9 SIGMOE_POINTERS_8, pointer(8)
#define SIGMOE_POINTERS_10 SIGMOE_POINTERS_9, pointer(9)
#define SIGMOE_POINTERS_11 SIGMOE_POINTERS_10, pointer(10)
#define SIGMOE_POINTERS_12 SIGMOE_POINTERS_11, pointer(11)

// An error of the launch itself comes back from the stream's next synchronisation.
#define SIGMOE_CANN_LAUNCHER(name, n_pointers, tiling_type)                                                          \
  extern "C" int32_t sigmoe_launch_##name(uint32_t blocks, void* stream, void* const* pointers, const void* bytes) { \
    sigmoe::ascend::tiling_type tiling;                                                                              \
    std::memcpy(&tiling, bytes, sizeof(tiling));                                                                     \
    const auto pointer = [&](int i) { return static_cast<uint8_t*>(pointers[i]); };                                  \
    sigmoe_##name<<<blocks, nullptr, stream>>>(SIGMOE_POINTERS_##n_pointers, tiling);                                \
    return 0;                                                                                                        \
  }
