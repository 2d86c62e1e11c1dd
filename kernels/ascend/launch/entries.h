// The kernel entries and their tilings, for whoever calls them: launchers and tests.
#pragma once

#include "ascend/device/args/add_rms_norm.h"
#include "ascend/device/args/attention.h"
#include "ascend/device/args/convert_rows.h"
#include "ascend/device/args/experts.h"
#include "ascend/device/args/linear.h"
#include "ascend/device/args/qk_norm_rope_store.h"
#include "ascend/device/args/route.h"
#include "ascend/device/args/sample.h"
#include "kernel_operator.h"

#define SIGMOE_GM_1 GM_ADDR
#define SIGMOE_GM_2 SIGMOE_GM_1, GM_ADDR
#define SIGMOE_GM_3 SIGMOE_GM_2, GM_ADDR
#define SIGMOE_GM_4 SIGMOE_GM_3, GM_ADDR
#define SIGMOE_GM_5 SIGMOE_GM_4, GM_ADDR
#define SIGMOE_GM_6 SIGMOE_GM_5, GM_ADDR
#define SIGMOE_GM_7 SIGMOE_GM_6, GM_ADDR
#define SIGMOE_GM_8 SIGMOE_GM_7, GM_ADDR
#define SIGMOE_GM_9 SIGMOE_GM_8, GM_ADDR
#define SIGMOE_GM_10 SIGMOE_GM_9, GM_ADDR
#define SIGMOE_GM_11 SIGMOE_GM_10, GM_ADDR
#define SIGMOE_GM_12 SIGMOE_GM_11, GM_ADDR
#define SIGMOE_GM_13 SIGMOE_GM_12, GM_ADDR
#define SIGMOE_GM_14 SIGMOE_GM_13, GM_ADDR
#define SIGMOE_GM_15 SIGMOE_GM_14, GM_ADDR
#define SIGMOE_GM_16 SIGMOE_GM_15, GM_ADDR
#define SIGMOE_GM_17 SIGMOE_GM_16, GM_ADDR
#define SIGMOE_GM_18 SIGMOE_GM_17, GM_ADDR
#define SIGMOE_GM_19 SIGMOE_GM_18, GM_ADDR
#define SIGMOE_GM_20 SIGMOE_GM_19, GM_ADDR
#define SIGMOE_GM_21 SIGMOE_GM_20, GM_ADDR
#define SIGMOE_GM_22 SIGMOE_GM_21, GM_ADDR
#define SIGMOE_GM_23 SIGMOE_GM_22, GM_ADDR
#define SIGMOE_GM_24 SIGMOE_GM_23, GM_ADDR
#define SIGMOE_ASCEND_KERNEL(name, kind, n_pointers, tiling) \
  extern "C" __global__ __aicore__ void sigmoe_##name(SIGMOE_GM_##n_pointers, sigmoe::ascend::tiling);
#include "ascend/launch/kernels.def"
#undef SIGMOE_ASCEND_KERNEL
