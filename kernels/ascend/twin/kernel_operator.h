// What a kernel includes: here the twin, in a CANN build Huawei's header of the same name.
#pragma once

#include "ascend/twin/cast.h"
#include "ascend/twin/fixpipe.h"
#include "ascend/twin/reduce.h"
#include "ascend/twin/select.h"
#include "ascend/twin/sort.h"
#include "ascend/twin/vector.h"
