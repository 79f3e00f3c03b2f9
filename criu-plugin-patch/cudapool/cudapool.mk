# SPDX-License-Identifier: GPL-2.0-only
# What cudapool adds to CRIU's CUDA plugin; the plugin's Makefile includes this file.
# Our <cuda.h> declares the few types that the plugin names, so no CUDA SDK is needed.
PLUGIN_INCLUDE += -Icudapool/wire/abi

CUDAPOOL_OBJS := $(patsubst %.c,%.o,$(wildcard cudapool/*.c cudapool/wire/*.c))
CUDAPOOL_DEPS := $(wildcard cudapool/*.h cudapool/wire/*.h cudapool/wire/*.def cudapool/wire/abi/*)

cuda_plugin.so: $(CUDAPOOL_OBJS)

# Hidden: nothing of it is for CRIU or for another plugin to see.
$(CUDAPOOL_OBJS): %.o: %.c $(CUDAPOOL_DEPS)
	$(call msg-gen, $@)
	$(Q) $(CC) $(PLUGIN_CFLAGS) -O2 -std=gnu11 -D_GNU_SOURCE -DCUDAPOOL_VERSION='"@CUDAPOOL_VERSION@"' -fvisibility=hidden \
		$(shell $(COMPEL) includes) -iquote. $(PLUGIN_INCLUDE) -c $< -o $@

clean: cudapool-clean
cudapool-clean:
	$(Q) $(RM) $(CUDAPOOL_OBJS)
.PHONY: cudapool-clean
