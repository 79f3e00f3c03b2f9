// SPDX-License-Identifier: MIT
/* cuda-checkpoint, as NVIDIA's tool is called, but by way of the pool: nothing initialises the driver here. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "log.h"
#include "options.h"
#include "parked.h"
#include "process.h"
#include "reach.h"

#define TOOL            "cuda-checkpoint"
#define VISITED         "CUDAPOOL_DROPIN_VISITED" /* environment: drop-ins that already passed the request on */
#define ACTION_LIMIT_MS 3660000 /* the pool's own limit is at most an hour, and it is the one that counts */
#define RELEASE_MS      5000
#define PID_LIMIT       4194304 /* the kernel's own */

enum exit_status { EXIT_WELL = 0, EXIT_FAILED = 1 }; /* as NVIDIA's: wrong usage is a failure, too */

struct request {
	enum { NOTHING, HELP, VERSION, STATE, RESTORE_TID, ACTION, TOGGLE } what;
	enum cudapool_op op; /* of ACTION */
	int pid;
	unsigned timeout_ms;
	bool unknown;      /* it has something that only NVIDIA's tool may know */
	char problem[160]; /* why it cannot be carried out */
};

static const char help[] =
	"CUDA checkpoint and restore, through the pool (cudapool " CUDAPOOL_VERSION ")\n"
	"\n"
	"Usage: cuda-checkpoint --get-state --pid PID\n"
	"       cuda-checkpoint --get-restore-tid --pid PID\n"
	"       cuda-checkpoint --action lock|checkpoint|restore|unlock --pid PID [--timeout MS]\n"
	"       cuda-checkpoint --toggle --pid PID\n"
	"       cuda-checkpoint --help | --version\n"
	"\n"
	"  --get-state        print running, locked, checkpointed or failed\n"
	"  --get-restore-tid  print the thread that the driver restores in\n"
	"  --action ACTION    carry out one step\n"
	"  --toggle           checkpoint a running process, restore a checkpointed one\n"
	"  --pid PID          the process, or a thread of it\n"
	"  --timeout MS       give up locking after so many milliseconds; 0 waits\n"
	"\n"
	"Same flags and output as NVIDIA's tool, but cudapoold does the work, whose driver is warm.\n"
	"A pool is started when there is none (CUDAPOOL_START=0 prevents it). Without one, with\n"
	"CRIU_CUDA_CONTEXT_POOL=0, and for flags not listed here, the next cuda-checkpoint in PATH is executed.\n"
	"CUDAPOOL_LOG_FILE tells which way was taken.\n"
	"\n"
	"Examples:\n"
	"  cuda-checkpoint --toggle --pid 1234\n"
	"  PATH=/usr/local/libexec/cudapool:$PATH criu dump --shell-job --images-dir img --tree 1234\n";

static bool parse_number(const char *text, long min, long max, long *number)
{
	char *end;

	errno = 0;
	*number = strtol(text, &end, 10);
	return !errno && end != text && !*end && *number >= min && *number <= max;
}

static int __attribute__((format(printf, 2, 3))) refuse(struct request *request, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(request->problem, sizeof(request->problem), format, args);
	va_end(args);
	return EXIT_FAILED;
}

static bool parse_action(const char *name, enum cudapool_op *op)
{
	static const struct {
		const char *name;
		enum cudapool_op op;
	} actions[] = {{"lock", CUDAPOOL_OP_LOCK},
		       {"checkpoint", CUDAPOOL_OP_CHECKPOINT},
		       {"restore", CUDAPOOL_OP_RESTORE},
		       {"unlock", CUDAPOOL_OP_UNLOCK}};
	size_t i;

	for (i = 0; i < sizeof(actions) / sizeof(actions[0]); i++)
		if (!strcmp(name, actions[i].name)) {
			*op = actions[i].op;
			return true;
		}
	return false;
}

static int parse(int argc, char **argv, struct request *request)
{
	static const struct option flags[] = {{"help", no_argument, NULL, 'h'},
					      {"version", no_argument, NULL, 'v'},
					      {"get-state", no_argument, NULL, 's'},
					      {"get-restore-tid", no_argument, NULL, 'r'},
					      {"toggle", no_argument, NULL, 't'},
					      {"action", required_argument, NULL, 'a'},
					      {"pid", required_argument, NULL, 'p'},
					      {"timeout", required_argument, NULL, 'm'},
					      {NULL}};
	int flag, commands = 0;
	long number;

	opterr = 0;
	while ((flag = getopt_long(argc, argv, ":h", flags, NULL)) != -1) {
		switch (flag) {
		case 'h':
			request->what = HELP;
			return EXIT_WELL;
		case 'v':
			request->what = VERSION;
			return EXIT_WELL;
		case 's':
		case 'r':
		case 't':
			request->what = flag == 's' ? STATE : flag == 'r' ? RESTORE_TID : TOGGLE;
			commands++;
			break;
		case 'a':
			request->what = ACTION;
			commands++;
			if (!parse_action(optarg, &request->op))
				return refuse(request, "--action is lock, checkpoint, restore or unlock, not '%s'.",
					      optarg);
			break;
		case 'p':
			if (!parse_number(optarg, 1, PID_LIMIT, &number))
				return refuse(request, "--pid takes the number of a process, not '%s'.", optarg);
			request->pid = (int)number;
			break;
		case 'm':
			if (!parse_number(optarg, 0, INT_MAX, &number))
				return refuse(request, "--timeout takes milliseconds, not '%s'.", optarg);
			request->timeout_ms = (unsigned)number;
			break;
		case ':':
			return refuse(request, "%s needs a value.", argv[optind - 1]);
		default:
			request->unknown = true;
			return refuse(request, "cudapool's cuda-checkpoint does not know '%s'.", argv[optind - 1]);
		}
	}
	if (optind < argc)
		return refuse(request, "'%s' is one argument too many.", argv[optind]);
	if (commands != 1)
		return refuse(request, "Give one of --get-state, --get-restore-tid, --action and --toggle.");
	if (!request->pid)
		return refuse(request, "--pid is missing.");
	return EXIT_WELL;
}

/* The next tool of this name in PATH that is neither this program nor a copy of it that came here before. */
static bool find_next(const char *visited, char *out, size_t size)
{
	const char *path = getenv("PATH"), *end;
	char id[64];
	struct stat st;
	int n;

	for (; path; path = *end ? end + 1 : NULL) {
		end = strchrnul(path, ':');
		n = snprintf(out, size, "%.*s/" TOOL, (int)(end - path), path);
		if (end == path || n >= (int)size || stat(out, &st) || !S_ISREG(st.st_mode) || access(out, X_OK))
			continue;
		snprintf(id, sizeof(id), " %llx:%llx ", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
		if (!strstr(visited, id))
			return true;
	}
	return false;
}

/* Executes the next cuda-checkpoint in PATH; returns only if there is none. `why` is for the log. */
static void pass_on(char **argv, const char *why)
{
	const char *before = getenv(VISITED);
	char visited[1024], path[PATH_MAX];
	struct stat st;
	int used;

	if (stat("/proc/self/exe", &st) == 0) {
		used = snprintf(visited, sizeof(visited), "%s %llx:%llx ", before ? before : "",
				(unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
		if (used < (int)sizeof(visited) && find_next(visited, path, sizeof(path)) &&
		    !setenv(VISITED, visited, 1)) {
			cudapool_log(CUDAPOOL_LOG_ERR, "without the pool, through %s: %s", path, why);
			execv(path, argv);
			cudapool_log(CUDAPOOL_LOG_ERR, "%s: %s", path, strerror(errno));
		}
	}
	cudapool_log(CUDAPOOL_LOG_ERR, "no other " TOOL " in PATH: %s", why);
}

/* CRIU outlives each cuda-checkpoint that it executes: what one locks is CRIU's. */
static int owner(void)
{
	struct process parent;
	int pid = 0;

	if (process_open(&parent, getppid()))
		return 0;
	if (process_is_criu(&parent))
		pid = parent.pid;
	process_close(&parent);
	return pid;
}

/* client->text says why not. */
static int reach_pool(struct cudapool_client *client, const struct cudapool_options *options, int owner_pid)
{
	struct cudapool_hello hello = {
		.role = CUDAPOOL_ROLE_DROPIN, .owner_pid = owner_pid, .wait_ms = options->wait_ms};
	char started[CUDAPOOL_TEXT_LEN];
	int ret = cudapool_reach(client, options, &hello, started);

	if (started[0])
		cudapool_log(CUDAPOOL_LOG_INFO, "%s", started);
	return ret;
}

static int act(struct cudapool_client *client, enum cudapool_op op, const struct request *request, int *value)
{
	struct cudapool_result result;
	int ret = cudapool_client_action(client, op, request->pid, op == CUDAPOOL_OP_LOCK ? request->timeout_ms : 0,
					 ACTION_LIMIT_MS, &result);

	cudapool_log(CUDAPOOL_LOG_ACTION, "action %d on process %d: %s (%u us in the driver)", op, request->pid,
		     client->text, result.elapsed_us);
	*value = result.value;
	/* Nothing was even tried: the next tool may. */
	if (ret == -EREMOTEIO && (result.error == -ENODEV || result.error == -ESHUTDOWN))
		ret = result.error;
	return ret;
}

static int toggle(struct cudapool_client *client, const struct request *request)
{
	char why[CUDAPOOL_TEXT_LEN];
	int state, ignored, ret;

	ret = act(client, CUDAPOOL_OP_STATE, request, &state);
	if (ret)
		return ret;
	if (state == CUDAPOOL_PROCESS_CHECKPOINTED) {
		ret = act(client, CUDAPOOL_OP_RESTORE, request, &ignored);
		return ret ? ret : act(client, CUDAPOOL_OP_UNLOCK, request, &ignored);
	}
	if (state != CUDAPOOL_PROCESS_RUNNING) {
		snprintf(client->text, sizeof(client->text),
			 "process %d is neither running nor checkpointed: use --action", request->pid);
		return -EBUSY;
	}
	ret = act(client, CUDAPOOL_OP_LOCK, request, &ignored);
	if (ret)
		return ret;
	ret = act(client, CUDAPOOL_OP_CHECKPOINT, request, &ignored);
	if (ret) { /* the process goes on */
		memcpy(why, client->text, sizeof(why));
		act(client, CUDAPOOL_OP_UNLOCK, request, &ignored);
		memcpy(client->text, why, sizeof(why));
	}
	return ret;
}

static int carry_out(struct cudapool_client *client, const struct request *request)
{
	static const char *const states[] = {"running", "locked", "checkpointed", "failed"};
	int value, ret;

	switch (request->what) {
	case STATE:
		ret = act(client, CUDAPOOL_OP_STATE, request, &value);
		if (!ret && (value < 0 || value > CUDAPOOL_PROCESS_FAILED)) {
			snprintf(client->text, sizeof(client->text), "the pool named the unknown state %d", value);
			ret = -EPROTO;
		}
		if (!ret)
			puts(states[value]);
		return ret;
	case RESTORE_TID:
		ret = act(client, CUDAPOOL_OP_RESTORE_TID, request, &value);
		if (!ret)
			printf("%d\n", value);
		return ret;
	case TOGGLE:
		return toggle(client, request);
	default:
		return act(client, request->op, request, &value);
	}
}

static void start_log(const struct cudapool_options *options)
{
	int fd;

	/* Without a file there is no log: CRIU's plugin reads both standard output and standard error. */
	if (!options->log_file[0])
		return;
	fd = open(options->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY,
		  0640);
	if (fd >= 0)
		cudapool_log_to(fd, options->log);
}

/* Through the pool. A negative errno of wire/client.h, and *client is closed; client->text says what went wrong. */
static int through_pool(struct cudapool_client *client, const struct cudapool_options *options,
			const struct request *request, bool *begun)
{
	char why[CUDAPOOL_TEXT_LEN];
	int owner_pid = owner(), ret;

	*begun = false;
	ret = reach_pool(client, options, owner_pid);
	if (ret)
		return ret;
	ret = carry_out(client, request);
	/* An answer that never came leaves it open how far a step got; a question may be asked again. */
	*begun = ret == -EREMOTEIO ||
		 (request->what != STATE && request->what != RESTORE_TID && ret != -ENODEV && ret != -ESHUTDOWN);
	if (!owner_pid && (request->what == ACTION || request->what == TOGGLE)) {
		/* A person's: stays as it is now, although this process ends. */
		memcpy(why, client->text, sizeof(why));
		if (cudapool_client_release(client, CUDAPOOL_RELEASE_KEEP, RELEASE_MS) && !ret)
			ret = -EIO;
		else
			memcpy(client->text, why, sizeof(why));
	}
	cudapool_client_close(client);
	return ret;
}

int main(int argc, char **argv)
{
	struct request request = {.what = NOTHING};
	struct cudapool_options options;
	struct cudapool_client client;
	char text[CUDAPOOL_TEXT_LEN];
	bool begun = false;
	int bad_usage, ret;

	bad_usage = parse(argc, argv, &request);
	if (request.what == HELP || request.what == VERSION) {
		fputs(request.what == HELP ? help : TOOL " (cudapool " CUDAPOOL_VERSION ")\n", stdout);
		return fflush(stdout) ? EXIT_FAILED : EXIT_WELL;
	}

	ret = cudapool_options_read(&options, CUDAPOOL_READER_PLUGIN | CUDAPOOL_READER_POOL, true, text);
	start_log(&options);
	if (bad_usage) {
		if (request.unknown)
			pass_on(argv, request.problem);
		fprintf(stderr, TOOL ": %s Try 'cuda-checkpoint --help'.\n", request.problem);
		return EXIT_FAILED;
	}
	if (!ret && !options.context_pool && options.source[CUDAPOOL_OPTION_context_pool] != CUDAPOOL_SOURCE_DEFAULT) {
		snprintf(text, sizeof(text), "CRIU_CUDA_CONTEXT_POOL is 0 (%s)",
			 cudapool_option_source_name(&options, CUDAPOOL_OPTION_context_pool));
		ret = -ECANCELED;
	}
	if (!ret) {
		ret = through_pool(&client, &options, &request, &begun);
		memcpy(text, client.text, sizeof(text));
	}
	if (!ret)
		return fflush(stdout) ? EXIT_FAILED : EXIT_WELL;
	if (begun) {
		fprintf(stderr, TOOL ": %s\n", text);
		return EXIT_FAILED;
	}
	/* No other tool can map it back, and once the process runs nobody would be asked again. */
	if ((request.what == ACTION || request.what == TOGGLE) && cudapool_parked_says(request.pid)) {
		fprintf(stderr,
			TOOL ": the GPU memory of process %d is parked, which only a pool can map back: %s; then "
			     "cuda-checkpoint --toggle --pid %d\n",
			request.pid, text, request.pid);
		return EXIT_FAILED;
	}
	pass_on(argv, text);
	fprintf(stderr, TOOL ": %s; and there is no other cuda-checkpoint in PATH\n", text);
	return EXIT_FAILED;
}
