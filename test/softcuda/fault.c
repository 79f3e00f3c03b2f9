// SPDX-License-Identifier: MIT
/* Faults on request, and the times of the cost model. */
#include "cu.h"

#include "softcuda.h"

#include <dlfcn.h>
#include <fcntl.h>

/* The program again, with another environment: what it does is in `mode`. Its exit status. */
static int again(char **argv, const char *mode)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		execl(argv[0], argv[0], mode, (char *)NULL);
		_exit(127);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* As a process of its own: does what it must under SOFTCUDA_FAULTS. 0 if it did. */
static int faulty(void)
{
	CUdeviceptr ptr;
	CUcontext ctx;
	double before;

	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	if (cuMemAlloc(&ptr, 8) != CUDA_SUCCESS || cuMemAlloc(&ptr, 8) != CUDA_ERROR_OUT_OF_MEMORY ||
	    cuMemAlloc(&ptr, 8) != CUDA_SUCCESS)
		return 1;
	if (cuMemFree(ptr) != CUDA_ERROR_UNKNOWN || cuMemFree(ptr) != CUDA_ERROR_UNKNOWN)
		return 2;
	before = now_ms();
	if (cuCtxSynchronize() != CUDA_SUCCESS || now_ms() - before < 50)
		return 3;
	return cuMemAllocHost((void **)&ptr, 8) ? 4 : 0; /* not cuMemAlloc */
}

/* Writes how long cuInit and a context took, in ms. */
static int timed(void)
{
	double init, made;
	CUcontext ctx;
	CUdeviceptr ptr;
	static char host[14 << 20];

	memset(host, 1, sizeof(host));
	init = now_ms();
	must(cuInit(0));
	init = now_ms() - init;
	made = now_ms();
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	made = now_ms() - made;
	must(cuMemAlloc(&ptr, sizeof(host)));
	must(cuMemsetD8(ptr, 0, sizeof(host)));
	printf("%f %f ", init, made);
	made = now_ms();
	must(cuMemcpyHtoD(ptr, host, sizeof(host)));
	printf("%f %d\n", now_ms() - made, softcuda_simulated());
	return 0;
}

static void times(const char *program, double *init, double *context, double *copy, int *simulated)
{
	char command[512];
	FILE *pipe;

	snprintf(command, sizeof(command), "%s timed", program);
	*init = *context = *copy = -1;
	pipe = popen(command, "re");
	if (!pipe || fscanf(pipe, "%lf %lf %lf %d", init, context, copy, simulated) != 4)
		note("%s says nothing", command);
	if (pipe)
		pclose(pipe);
}

static int costs_refused(char **argv, const char *text)
{
	device_file("machine", text);
	return again(argv, "quiet");
}

int main(int argc, char **argv)
{
	double init, context, copy;
	int simulated = -1;
	char path[128];

	if (argc > 1 && !strcmp(argv[1], "faulty"))
		return faulty();
	if (argc > 1 && !strcmp(argv[1], "timed"))
		return timed();
	if (argc > 1 && !strcmp(argv[1], "quiet"))
		return freopen("/dev/null", "w", stderr) ? cuInit(0) : 255;

	device_dir_make();
	setenv("SOFTCUDA_FAULTS", "cuMemAlloc=2@2,cuMemFree=999,cuCtxSynchronize=hang:50", 1);
	ok(again(argv, "faulty") == 0, "errors and delays come where they are asked for, and only there");
	unsetenv("SOFTCUDA_FAULTS");
	device_file("faults", "cuMemAlloc=2@2\ncuMemFree=999\ncuCtxSynchronize=hang:50\n");
	ok(again(argv, "faulty") == 0, "and from the file in the device directory");
	device_file("faults", "");

	times(argv[0], &init, &context, &copy, &simulated);
	ok(init >= 0 && init < 60 && !simulated, "without a cost model nothing is simulated: cuInit %.1f ms", init);
	setenv("SOFTCUDA_COSTS", COSTS, 1);
	times(argv[0], &init, &context, &copy, &simulated);
	ok(init >= 96.5 && init < 1000 && simulated == 1, "cold cuInit %.1f ms as measured, 97", init);
	ok(context >= 107.5 && context < 1000, "a context %.1f ms as measured, 108", context);
	ok(copy >= 1.9 && copy < 1000, "14 MiB from pageable memory %.1f ms as measured, 2.1", copy);
	must(cuInit(0));
	times(argv[0], &init, &context, &copy, &simulated);
	ok(init >= 8.5 && init < 90, "warm cuInit %.1f ms as measured, 9", init);

	snprintf(path, sizeof(path), "%s/machine", device_dir);
	setenv("SOFTCUDA_COSTS", path, 1);
	ok(costs_refused(argv, "init_cold_ms = 1\n") == CUDA_ERROR_INVALID_VALUE,
	   "a cost file that lacks some is refused");
	ok(costs_refused(argv, "unheard_of_ms = 1\n") == CUDA_ERROR_INVALID_VALUE, "and one with a name unheard of");
	ok(costs_refused(argv, "init_cold_ms = fast\n") == CUDA_ERROR_INVALID_VALUE, "and one that is no number");

	device_dir_remove();
	return tap_end();
}
