# SPDX-License-Identifier: MIT
# Compiler settings that the C rooms share; each room's Makefile includes this file.
#   OUT=DIR             where objects and results go; default: the room itself
#   SANITIZE=address    (or undefined, thread, or address,undefined): a sanitizer build; give it an OUT of its own
#   WERROR=1            warnings are errors; the checks use it
CC ?= cc
OUT ?= .
WARN := -Wall -Wextra -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wno-unused-parameter -Wno-missing-field-initializers
ifeq ($(WERROR),1)
WARN += -Werror
endif
CFLAGS ?= -O2 -g
VERSION := $(shell sed -n 's/^ *"version": *"\([^"]*\)".*/\1/p' $(dir $(lastword $(MAKEFILE_LIST)))../package.json)
ALL_CPPFLAGS = -D_GNU_SOURCE -DCUDAPOOL_VERSION='"$(VERSION)"' -I$(WIRE) -I$(WIRE)/abi $(CPPFLAGS)
ALL_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -fno-strict-aliasing -MMD -MP $(WARN) $(CFLAGS)
ALL_LDFLAGS = -Wl,-z,defs -Wl,-z,relro -Wl,-z,now -Wl,--build-id $(LDFLAGS)
ifneq ($(SANITIZE),)
ALL_CFLAGS += -fsanitize=$(SANITIZE) -fno-omit-frame-pointer
ALL_LDFLAGS += -fsanitize=$(SANITIZE)
endif
WIRE := $(dir $(lastword $(MAKEFILE_LIST)))
