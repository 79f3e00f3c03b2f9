// SPDX-License-Identifier: MIT
/*
 * What a checkpoint makes of exported, imported and peers' memory: what the driver carries, and with what a process
 * is lost.
 */
#include "cu.h"

#define GRAIN (2ul << 20)

static const CUmemAllocationProp prop = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					 .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
					 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE}};
static CUdeviceptr reserved;
static CUmemGenericAllocationHandle handle;

static size_t free_pieces(void)
{
	size_t free, total;

	must(cuMemGetInfo(&free, &total));
	return free / GRAIN;
}

static void give_access(CUdeviceptr ptr, int device)
{
	CUmemAccessDesc access = {.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device},
				  .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};

	must(cuMemSetAccess(ptr, GRAIN, &access, 1));
}

static void start(void)
{
	CUcontext ctx;

	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuMemAddressReserve(&reserved, 4 * GRAIN, 0, 0, 0));
	must(cuMemCreate(&handle, GRAIN, &prop, 0));
	must(cuMemMap(reserved, GRAIN, 0, handle, 0));
	give_access(reserved, 0);
	must(cuMemsetD32(reserved, 0xabcd, GRAIN / 4));
}

static unsigned first_word(void)
{
	unsigned word = 0;

	must(cuMemcpyDtoH(&word, reserved, 4));
	return word;
}

static int export(void)
{
	int fd;

	must(cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	return fd;
}

static CUresult checkpoint_self(void)
{
	CUcheckpointLockArgs how = {.timeoutMs = 5000};

	must(cuCheckpointProcessLock(getpid(), &how));
	return cuCheckpointProcessCheckpoint(getpid(), NULL);
}

/* In a child: its restore must fail so, and then it is lost. 0 if all of that is so. */
static int lost_with(CUresult wanted)
{
	CUresult results[] = {checkpoint_self(), cuCheckpointProcessRestore(getpid(), NULL),
			      cuCheckpointProcessRestore(getpid(), NULL), cuCheckpointProcessUnlock(getpid(), NULL)};
	CUprocessState state;

	must(cuCheckpointProcessGetState(getpid(), &state));
	note("checkpoint %d, restore %d, again %d, unlock %d, state %d", results[0], results[1], results[2],
	     results[3], state);
	return results[0] || results[1] != wanted || results[2] != CUDA_ERROR_ILLEGAL_STATE ||
	       results[3] != CUDA_ERROR_ILLEGAL_STATE || state != CU_PROCESS_STATE_FAILED;
}

static int with_imported(void *arg)
{
	int fd;

	start();
	fd = export();
	must(cuMemUnmap(reserved, GRAIN));
	must(cuMemRelease(handle));
	must(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	close(fd);
	must(cuMemMap(reserved, GRAIN, 0, handle, 0));
	give_access(reserved, 0);
	return first_word() != 0xabcd || lost_with(CUDA_ERROR_NOT_SUPPORTED);
}

static int with_peers(void *arg)
{
	CUcontext first, second;

	start();
	must(cuCtxGetCurrent(&first));
	must(cuCtxCreate(&second, NULL, 0, 1));
	must(cuCtxSetCurrent(first));
	must(cuCtxEnablePeerAccess(second, 0));
	return lost_with(CUDA_ERROR_INVALID_VALUE);
}

static int with_mapped_peer(void *arg)
{
	start();
	give_access(reserved, 1);
	must(checkpoint_self());
	must(cuCheckpointProcessRestore(getpid(), NULL));
	must(cuCheckpointProcessUnlock(getpid(), NULL));
	return first_word() != 0xabcd;
}

/*
 * It fills the device; checkpointed, what it has exported stays, so that a second copy of one piece does not fit in
 * again.
 */
static int beside_parked(bool make_room)
{
	CUmemGenericAllocationHandle parked;
	int fd, more;

	start();
	must(cuMemCreate(&parked, 30 * GRAIN, &prop, 0));
	must(cuMemExportToShareableHandle(&fd, parked, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	must(cuMemRelease(parked));
	must(cuMemCreate(&parked, GRAIN, &prop, 0));
	must(cuMemExportToShareableHandle(&more, parked, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
	must(checkpoint_self());
	if (make_room)
		close(fd);
	return cuCheckpointProcessRestore(getpid(), NULL);
}

static int without_room(void *arg)
{
	return beside_parked(false) != CUDA_ERROR_OUT_OF_MEMORY;
}

static int with_room(void *arg)
{
	return beside_parked(true) || cuCheckpointProcessUnlock(getpid(), NULL) || first_word() != 0xabcd;
}

static void carried(void)
{
	CUmemGenericAllocationHandle again;
	size_t all = 32;
	int fd;

	ok(free_pieces() == all - 1, "one piece is taken");
	is(checkpoint_self(), CUDA_SUCCESS);
	is(cuCheckpointProcessRestore(getpid(), NULL), CUDA_SUCCESS);
	is(cuCheckpointProcessUnlock(getpid(), NULL), CUDA_SUCCESS);
	ok(first_word() == 0xabcd && free_pieces() == all - 1, "mapped memory is carried by a checkpoint");
	must(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)reserved));
	ok(again == handle, "under its handle");
	must(cuMemRelease(again));

	fd = export();
	is(checkpoint_self(), CUDA_SUCCESS);
	ok(fcntl(fd, F_GETFD) >= 0, "exported memory is no hindrance, and its descriptor stays open");
	must(cuCheckpointProcessRestore(getpid(), NULL));
	must(cuCheckpointProcessUnlock(getpid(), NULL));
	ok(free_pieces() == all - 2, "what was exported and what was restored are two memories from then on");
	must(cuMemsetD32(reserved, 0x1234, GRAIN / 4));
	must(cuMemImportFromShareableHandle(&again, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	close(fd);
	must(cuMemMap(reserved + GRAIN, GRAIN, 0, again, 0));
	give_access(reserved + GRAIN, 0);
	must(cuMemcpyDtoD(reserved, reserved + GRAIN, GRAIN));
	ok(first_word() == 0xabcd, "with contents of their own");
	must(cuMemUnmap(reserved + GRAIN, GRAIN));
	must(cuMemRelease(again));
	fd = export();
	ok(fd >= 0, "and what was restored can be exported");

	must(cuMemUnmap(reserved, GRAIN)); /* parked */
	must(cuMemRelease(handle));
	must(checkpoint_self());
	must(cuCheckpointProcessRestore(getpid(), NULL));
	must(cuCheckpointProcessUnlock(getpid(), NULL));
	ok(free_pieces() == all - 1, "parked memory stays taken over checkpoint and restore");
	must(cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
	close(fd);
	must(cuMemMap(reserved, GRAIN, 0, handle, 0));
	give_access(reserved, 0);
	ok(first_word() == 0xabcd, "and is mapped again at the address that stayed reserved");
	must(cuMemUnmap(reserved, GRAIN));
	must(cuMemRelease(handle));
	ok(free_pieces() == all, "nothing is kept");
}

int main(void)
{
	CUcontext ctx;

	if (geteuid()) {
		printf("1..0 # SKIP opening map_files needs root\n");
		return 0;
	}
	device_dir_make();
	setenv("SOFTCUDA_MEMORY_MB", "64", 1);
	setenv("SOFTCUDA_DEVICES", "2", 1);
	ok(!in_child(with_imported, NULL), "with imported memory a process is lost");
	ok(!in_child(with_peers, NULL), "with peer access it is");
	ok(!in_child(without_room, NULL), "without room beside parked memory it is");
	ok(!in_child(with_mapped_peer, NULL), "with memory open to another device it is restored");
	ok(!in_child(with_room, NULL), "with room made before, it is restored");
	start();
	carried();
	must(cuCtxGetCurrent(&ctx));
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
