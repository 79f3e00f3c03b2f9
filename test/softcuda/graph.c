// SPDX-License-Identifier: MIT
/* Stream capture and graphs. */
#include "cu.h"

int main(void)
{
	CUstreamCaptureStatus status;
	CUstream a, b;
	CUgraphExec exec;
	CUgraph graph;
	CUdeviceptr memory, out;
	CUfunction fill, checksum;
	CUmodule module;
	CUcontext ctx;
	CUevent event, joined;
	uint64_t words = 64, sum;
	uint32_t seed = 3;
	size_t count = 0;

	device_dir_make();
	must(cuInit(0));
	must(cuCtxCreate(&ctx, NULL, 0, 0));
	must(cuModuleLoadData(&module, test_ptx));
	must(cuModuleGetFunction(&fill, module, "cudapool_fill"));
	must(cuModuleGetFunction(&checksum, module, "cudapool_checksum"));
	must(cuMemAlloc(&memory, 256));
	must(cuMemAlloc(&out, 8));
	must(cuMemsetD8(out, 0, 8));
	must(cuStreamCreate(&a, CU_STREAM_NON_BLOCKING));
	must(cuStreamCreate(&b, CU_STREAM_NON_BLOCKING));
	must(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
	must(cuEventCreate(&joined, CU_EVENT_DISABLE_TIMING));

	is(cuStreamBeginCapture(NULL, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	is(cuStreamEndCapture(a, &graph), CUDA_ERROR_ILLEGAL_STATE);
	is(cuStreamBeginCapture(a, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_SUCCESS);
	is(cuStreamBeginCapture(a, CU_STREAM_CAPTURE_MODE_RELAXED), CUDA_ERROR_ILLEGAL_STATE);
	is(cuStreamIsCapturing(a, &status), CUDA_SUCCESS);
	ok(status == CU_STREAM_CAPTURE_STATUS_ACTIVE, "the stream is being captured");
	launch(fill, a, (void *[]){&memory, &words, &seed});
	must(cuEventRecord(event, a));
	is(cuStreamWaitEvent(b, event, 0), CUDA_SUCCESS);
	must(cuStreamIsCapturing(b, &status));
	ok(status == CU_STREAM_CAPTURE_STATUS_ACTIVE, "a second one joins by an event");
	launch(checksum, b, (void *[]){&memory, &words, &out});
	is(cuStreamEndCapture(b, &graph), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
	must(cuEventRecord(joined, b));
	must(cuStreamWaitEvent(a, joined, 0));
	is(cuStreamEndCapture(a, &graph), CUDA_SUCCESS);
	is(cuGraphGetNodes(graph, NULL, &count), CUDA_SUCCESS);
	ok(count == 2, "two pieces of work were captured");
	must(cuMemcpyDtoH(&sum, out, 8));
	ok(sum == 0, "and not carried out");

	is(cuGraphInstantiate(&exec, graph, 0), CUDA_SUCCESS);
	is(cuGraphDestroy(graph), CUDA_SUCCESS);
	is(cuGraphLaunch(exec, a), CUDA_SUCCESS);
	is(cuGraphLaunch(exec, a), CUDA_SUCCESS);
	must(cuStreamSynchronize(a));
	must(cuMemcpyDtoH(&sum, out, 8));
	ok(sum == 2 * filled_sum(words, seed), "launched twice, the graph runs twice");
	is(cuGraphExecDestroy(exec), CUDA_SUCCESS);

	must(cuStreamBeginCapture(a, CU_STREAM_CAPTURE_MODE_RELAXED));
	is(cuStreamSynchronize(a), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
	is(cuStreamEndCapture(a, &graph), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
	is(cuStreamSynchronize(a), CUDA_SUCCESS);
	must(cuCtxDestroy(ctx));
	device_dir_remove();
	return tap_end();
}
