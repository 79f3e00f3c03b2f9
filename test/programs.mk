# SPDX-License-Identifier: MIT
# For a room of tests whose PROGRAMS are each made of OBJECTS_name: the room's own, and wire/'s and pool/'s under these names.
# What ALSO names is made by rules of the room.
POOL := ../../pool
ALL_CPPFLAGS += -I$(POOL)

all: $(addprefix $(OUT)/,$(PROGRAMS) $(ALSO))

$(OUT)/obj/wire/%.o: $(WIRE)%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

$(OUT)/obj/pool/%.o: $(POOL)/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

$(OUT)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -pthread -c -o $@ $<

define program
$(OUT)/$(1): $(OBJECTS_$(1):%=$(OUT)/obj/%)
	$$(CC) $$(ALL_LDFLAGS) -o $$@ $$^ -pthread -ldl
endef
$(foreach p,$(PROGRAMS),$(eval $(call program,$(p))))

clean:
	rm -rf $(addprefix $(OUT)/,$(PROGRAMS) $(ALSO) obj)

-include $(wildcard $(OUT)/obj/*.d $(OUT)/obj/*/*.d)
.PHONY: all clean
