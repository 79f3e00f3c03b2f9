# SPDX-License-Identifier: MIT
# Parts of the pool that several programs are made of, those of test/pool among them.
IMAGE := image.o checksum.o
ENGINE := engine.o engine_memory.o engine_lane.o engine_save.o engine_load.o engine_copy.o engine_map.o engine_file.o \
	engine_view.o $(IMAGE)
STORE := store.o store_save.o store_files.o store_gift.o store_memory.o store_room.o store_job.o store_dir.o store_read.o \
	store_tier.o store_watch.o store_deposit.o deposit.o records.o background.o descriptors.o
