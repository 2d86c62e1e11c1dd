// Names the calling thread, so that an operator's top -H and a profiler tell who is at work.
#pragma once

#if defined(__linux__)
#include <pthread.h>
#endif

namespace sigmoe {

// At most 15 characters.
inline void name_this_thread([[maybe_unused]] const char* name) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), name);
#endif
}

}  // namespace sigmoe
