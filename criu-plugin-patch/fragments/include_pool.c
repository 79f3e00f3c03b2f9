// SPDX-License-Identifier: GPL-2.0-only
#include "cudapool/parked.h"
#include "cudapool/pool.h"
#include "cudapool/tree.h"
#include "cudapool/zero_pages.h"
#include "cudapool/wire/clock.h"
