// How many cores of either kind a device has: what tilings divide work by.
#pragma once

namespace sigmoe::ascend {

struct Cores {
  int aic = 20;  // cube cores; a kernel of both kinds runs as this many groups of one cube and two vector cores
  int aiv = 40;  // vector cores
};

}  // namespace sigmoe::ascend
