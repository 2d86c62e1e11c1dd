// What a benchmark needs of a device besides its ops: weights and data that are made where they are used, device times, and
// the ceilings that times are compared with. A backend that brings none is measured from the host (engine/bench/host_device.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace sigmoe {

class BenchDevice {
 public:
  virtual ~BenchDevice() = default;

  // A random weight of standard deviation 0.02, made on the device: full-size models need no host that could hold them.
  // Null: this device makes none.
  virtual std::unique_ptr<LinearWeight> random_linear(const LinearDesc& desc, uint64_t seed) { return nullptr; }

  // data (n) f32 or bf16 <- uniform in [-limit, limit).
  virtual void fill(void* data, DType dtype, size_t n, float limit, uint64_t seed) = 0;

  struct Timing {
    double ms = 0;
    double read_gbps = 0;  // of memory read once, just before; 0: not measured
  };
  // Reads more memory than the caches hold, which empties them of what `work` needs and keeps the device busy while work is
  // enqueued; then times what work enqueues, from its beginning to its end.
  virtual Timing time(const std::function<void()>& work) = 0;

  // Ceilings; 0 where there is none.
  virtual double copy_gbps() { return 0; }                    // bytes read plus bytes written
  virtual double matrix_gflops(DType operands) { return 0; }  // bf16 or f8_e4m3 operands, random, sums in float32
  virtual std::string driver() { return {}; }                 // version of the device's driver

  // Of several devices that have joined one world (Backend::join), called on all of them at once: 10^9 bytes/s that this one
  // reads of another's memory while all do, and what a meeting takes that carries nothing. 0: not known.
  struct PeerCeilings {
    double link_gbps = 0, meeting_us = 0;
  };
  virtual PeerCeilings peer_ceilings() { return {}; }

  // The kernels that `work` enqueues, in order of first use, each with its launches and what they took together, one after the
  // other with nothing overlapping: the sum is more than the work takes. Empty: not known.
  struct KernelUse {
    std::string name;
    int launches = 0;
    double ms = 0;
  };
  virtual std::vector<KernelUse> kernels_of(const std::function<void()>& work) { return {}; }

  // What the backend chose for each op of `work`, in the order of the calls. `fallback` says which kernel is meant for the
  // range and why it does not take the op; empty: the one that ran is. None: this backend does not say.
  struct Choice {
    std::string op;
    int rows = 0;
    std::string kernel, fallback;
    bool operator==(const Choice&) const = default;
  };
  virtual std::vector<Choice> choices_of(const std::function<void()>& work) { return {}; }
};

}  // namespace sigmoe
