// The kernels compiled for the CPU, as the table the host side calls: a launch puts the twin's run of the kernel on a stream of
// the runtime.
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "ascend/launch/entries.h"
#include "ascend/launch/kernel_table.h"
#include "ascend/runtime/runtime.h"
#include "kernel_operator.h"

namespace sigmoe::ascend {
namespace {

constexpr int kMostPointers = 32;

// Entry(pointers..., tiling), its parameters taken apart.
template <typename>
struct Signature;
template <typename... Args>
struct Signature<void (*)(Args...)> {
  static constexpr int kPointers = sizeof...(Args) - 1;
  using Tiling = std::tuple_element_t<kPointers, std::tuple<Args...>>;
  static_assert(kPointers <= kMostPointers);
  static_assert(std::is_trivially_copyable_v<Tiling>, "a tiling travels by value");
};

template <typename Entry, size_t... I, typename Tiling>
void call(Entry entry, const std::array<void*, kMostPointers>& pointers, const Tiling& tiling, std::index_sequence<I...>) {
  entry(static_cast<GM_ADDR>(pointers[I])..., tiling);
}

// What a launch needs when its turn on the stream comes; graphs run it many times.
template <typename Tiling>
struct Call {
  uint32_t blocks = 0;
  std::array<void*, kMostPointers> pointers{};
  Tiling tiling;
};

template <auto kEntry, KernelKind kKind>
int32_t launch(uint32_t blocks, void* stream, void* const* pointers, const void* tiling) {
  using Shape = Signature<decltype(kEntry)>;
  using Tiling = typename Shape::Tiling;
  auto made = std::make_unique<Call<Tiling>>();
  made->blocks = blocks;
  std::copy(pointers, pointers + Shape::kPointers, made->pointers.begin());
  std::memcpy(&made->tiling, tiling, sizeof(Tiling));
  const auto run = [](void* state) {
    const auto& wanted = *static_cast<const Call<Tiling>*>(state);
    constexpr twin::Kind kTwinKind = kKind == KernelKind::aiv   ? twin::Kind::aiv
                                     : kKind == KernelKind::aic ? twin::Kind::aic
                                                                : twin::Kind::mix;
    twin::launch(kTwinKind, wanted.blocks,
                 [&] { call(kEntry, wanted.pointers, wanted.tiling, std::make_index_sequence<Shape::kPointers>()); });
  };
  return sigmoe_runtime_enqueue(stream, run, made.release(), [](void* state) { delete static_cast<Call<Tiling>*>(state); });
}

constexpr KernelEntry kEntries[] = {
#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling) \
  {#name, KernelKind::kind, n_pointers, sizeof(tiling), launch<&sigmoe_##name, KernelKind::kind>},
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL
};

#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling)                             \
  static_assert(Signature<decltype(&sigmoe_##name)>::kPointers == n_pointers &&          \
                    std::is_same_v<Signature<decltype(&sigmoe_##name)>::Tiling, tiling>, \
                "kernels.def and the entry of " #name " disagree");
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL

constexpr KernelTable kTable{kKernelAbi, static_cast<uint32_t>(Kernel::count), kEntries, "cpu twin"};

}  // namespace
}  // namespace sigmoe::ascend

extern "C" __attribute__((visibility("default"))) const sigmoe::ascend::KernelTable* sigmoe_ascend_kernels() {
  static const bool attached = [] {
    // The checks of kernel against hardware rule cost much; the kernels' own tests have them on, a model run has them off.
    const char* checks = std::getenv("SIGMOE_ASCEND_TWIN_CHECKS");
    twin::checks(checks && std::string(checks) == "1");
    sigmoe_runtime_listen([](void* memory, size_t bytes) { twin::register_gm(memory, bytes); },
                          [](void* memory) { twin::unregister_gm(memory); });
    return true;
  }();
  return attached ? &sigmoe::ascend::kTable : nullptr;
}
