// What a kernel says to an op, and the walk over the kernels that an op could take: for the files that choose.
#pragma once

#include "cuda/kernel_choice.h"

namespace sigmoe::cuda {

struct Verdict {
  bool takes = false;
  Refusal refusal;  // none: the op is outside the range the kernel was made for
};

inline Verdict takes() { return {true, {}}; }
inline Verdict outside() { return {}; }
inline Verdict refuses(Reason reason) { return {false, {reason}}; }
inline Verdict refuses(Reason reason, const char* what, int found, int wanted) {
  return {false, {reason, what, found, wanted}};
}
inline Verdict refuses_format(const WeightShape& weight) { return {false, {Reason::format, "", 0, 0, weight.format}}; }

// Kernels are tried from the one that is fastest on. The first refusal is the one to tell, but for that of a kernel which no
// card like this could run.
class Candidates {
 public:
  bool tries(Kernel kernel, const Verdict& verdict) {
    if (verdict.takes) choice_.kernel = kernel;
    if (verdict.refusal.reason != Reason::none) remember(kernel, verdict.refusal);
    return verdict.takes;
  }
  void remember(Kernel kernel, const Refusal& refusal) {
    if (choice_.is_fallback() && choice_.refusal.reason != Reason::no_hopper) return;
    choice_.meant = kernel;
    choice_.refusal = refusal;
  }
  KernelChoice found() const { return choice_; }
  KernelChoice otherwise(Kernel kernel) {
    choice_.kernel = kernel;
    return choice_;
  }

 private:
  KernelChoice choice_;
};

// Why kernels of many rows do not run at all.
Verdict refuses_many_rows(const Facts& facts);

}  // namespace sigmoe::cuda
