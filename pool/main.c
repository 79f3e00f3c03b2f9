// SPDX-License-Identifier: MIT
/* cudapoold: the command line. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "build.h"
#include "client.h"
#include "json.h"
#include "inspect.h"
#include "keeper.h"
#include "log.h"
#include "notify.h"
#include "options.h"
#include "shim_page.h"
#include "worker.h"

#define ASK_LIMIT_MS  5000
#define END_LIMIT_MS  12000
#define SHIM_LIMIT_MS 500
#define MOVE_LIMIT_MS 3600000 /* the pool's own limits, on progress, are what counts */

enum exit_status { EXIT_WELL = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_UNFIT = 3 };

enum verb {
	SERVE,
	DAEMONIZE,
	WORKER,
	STATUS,
	STOP,
	OPTIONS,
	SHIM,
	EVICT,
	PREFETCH,
	INSPECT,
	VERIFY,
	VERSION,
	TIER, /* no verb: an argument of two of them */
	HELP
};

/* Flags that set an option say so in the environment: one place checks values, and the worker inherits them. */
static const struct option flags[] = {
	{"foreground", no_argument, NULL, SERVE},
	{"daemonize", no_argument, NULL, DAEMONIZE},
	{"worker", required_argument, NULL, WORKER}, /* the keeper's way to start the worker; not for people */
	{"status", no_argument, NULL, STATUS},
	{"stop", no_argument, NULL, STOP},
	{"options", no_argument, NULL, OPTIONS},
	{"shim", required_argument, NULL, SHIM},
	{"evict", required_argument, NULL, EVICT},
	{"prefetch", required_argument, NULL, PREFETCH},
	{"inspect", required_argument, NULL, INSPECT},
	{"verify", required_argument, NULL, VERIFY},
	{"tier", required_argument, NULL, TIER},
	{"version", no_argument, NULL, VERSION},
	{"help", no_argument, NULL, HELP},
#define OPTION_FLAG(name) (HELP + 1 + CUDAPOOL_OPTION_##name)
	{"socket", required_argument, NULL, OPTION_FLAG(socket)},
	{"idle", required_argument, NULL, OPTION_FLAG(idle_s)},
	{"contexts", required_argument, NULL, OPTION_FLAG(contexts)},
	{"threads", required_argument, NULL, OPTION_FLAG(threads)},
	{"action-limit", required_argument, NULL, OPTION_FLAG(action_limit_s)},
	{"libcuda", required_argument, NULL, OPTION_FLAG(libcuda)},
	{"group", required_argument, NULL, OPTION_FLAG(group)},
	{"log", required_argument, NULL, OPTION_FLAG(log)},
	{"log-file", required_argument, NULL, OPTION_FLAG(log_file)},
	{0},
};

static const char *const environment[CUDAPOOL_OPTION_COUNT] = {
#define OPTION(name, variable, type, fallback, min, max, readers, text) [CUDAPOOL_OPTION_##name] = variable,
#include "options.def"
#undef OPTION
};

static const char help[] =
	"cudapoold: keeps the CUDA driver warm, and carries out checkpoint actions for CRIU\n"
	"\n"
	"Usage: cudapoold [--foreground | --daemonize] [OPTION...]   serve (in the foreground by default)\n"
	"       cudapoold --status [--socket PATH]                   what the pool does, as JSON\n"
	"       cudapoold --stop [--socket PATH]                     end it; refused while it holds a process\n"
	"       cudapoold --options                                  the table of options and their values, as JSON\n"
	"       cudapoold --shim PID                                 what the shim in a process says, as JSON\n"
	"       cudapoold --evict TOKEN|all [--tier staged|cold]     let go of parked memory on the GPU, as JSON\n"
	"       cudapoold --prefetch DIR [--tier hot|staged]         load the images in DIR ahead, as JSON\n"
	"       cudapoold --inspect FILE                             what an image says of itself, as JSON\n"
	"       cudapoold --verify FILE                              the same, after checking all of it\n"
	"       cudapoold --version | --help\n"
	"\n"
	"  --tier TIER       for --evict: where memory may stay, in the page cache (staged, the default) or only on\n"
	"                    disk (cold, which ends when that is so); for --prefetch: how far it comes, to the GPU\n"
	"                    (hot, the default) or staged\n"
	"  --socket PATH     where it is reached (CUDAPOOL_SOCKET)\n"
	"  --idle SECONDS    end after so long without a client; 0 never (CUDAPOOL_IDLE_S)\n"
	"  --contexts N      devices to keep a warm context on; 0 keeps only the driver warm (CUDAPOOL_CONTEXTS)\n"
	"  --threads N       actions carried out at once (CUDAPOOL_THREADS)\n"
	"  --action-limit S  seconds after which an action counts as hung (CUDAPOOL_ACTION_LIMIT_S)\n"
	"  --libcuda PATH    the driver library (CUDAPOOL_LIBCUDA)\n"
	"  --group NAME      whose members may command it, beside root (CUDAPOOL_GROUP)\n"
	"  --log LEVEL       0 nothing, 1 errors, 2 what happens, 3 each action, 4 everything (CUDAPOOL_LOG)\n"
	"  --log-file PATH   default: standard error; with --daemonize, nowhere (CUDAPOOL_LOG_FILE)\n"
	"\n"
	"A flag counts before the environment, that before the file (CUDAPOOL_CONFIG, " CUDAPOOL_CONFIG_DEFAULT ").\n"
	"Exit status: 0 well, 1 failed, 2 wrong usage, 3 the machine does not allow it.\n"
	"\n"
	"Examples:\n"
	"  cudapoold --daemonize --idle 600     start one, gone after ten minutes without use\n"
	"  cudapoold --status | jq .worker      is the driver warm?\n"
	"  cudapoold --evict all                give the GPU's memory to others; restores then load their images\n"
	"  systemctl enable --now cudapoold     one for the host\n";

static int ready_fd = -1; /* with --daemonize: where the parent waits */

static int usage(const char *format, const char *what)
{
	fprintf(stderr, "cudapoold: ");
	fprintf(stderr, format, what);
	fprintf(stderr, "\nTry 'cudapoold --help'.\n");
	return EXIT_USAGE;
}

/* ---- clients' verbs ----------------------------------------------------------------------------- */

static int connect_to(struct cudapool_client *client, const char *socket)
{
	struct cudapool_hello hello = {.role = CUDAPOOL_ROLE_TOOL};
	int err = cudapool_client_connect(client, socket, &hello);

	if (err)
		fprintf(stderr, "cudapoold: %s\n", client->text);
	return err;
}

static int show_status(const char *socket)
{
	static char json[CUDAPOOL_WIRE_MAX];
	struct cudapool_client client;
	int err;

	if (connect_to(&client, socket))
		return EXIT_FAILED;
	err = cudapool_client_status(&client, json, sizeof(json), ASK_LIMIT_MS);
	if (err)
		fprintf(stderr, "cudapoold: %s\n", client.text);
	else
		puts(json);
	cudapool_client_close(&client);
	return err ? EXIT_FAILED : EXIT_WELL;
}

/* Ends it and waits until it is gone, so that another can be started at once. */
static int stop(const char *socket)
{
	struct cudapool_client client;
	struct pollfd end = {.events = 0};
	int err, gone;

	if (connect_to(&client, socket))
		return EXIT_FAILED;
	err = cudapool_client_stop(&client, ASK_LIMIT_MS);
	if (err) {
		fprintf(stderr, "cudapoold: %s\n", client.text);
		cudapool_client_close(&client);
		return EXIT_FAILED;
	}
	end.fd = client.fd;
	gone = poll(&end, 1, END_LIMIT_MS);
	cudapool_client_close(&client);
	if (gone > 0)
		return EXIT_WELL;
	fprintf(stderr, "cudapoold: the pool (process %d) said it would end, and still runs\n",
		client.welcome.pool_pid);
	return EXIT_FAILED;
}

/* Prints what the pool found, or let go of. */
static int show_found(const struct cudapool_found *found, int err)
{
	char json[1024], dump[2 * CUDAPOOL_TOKEN_LEN + 1];
	struct cudapool_json j = {.out = json, .size = sizeof(json)};
	size_t i;

	for (i = 0; i < CUDAPOOL_TOKEN_LEN; i++)
		snprintf(dump + 2 * i, 3, "%02x", found->dump[i]);
	cudapool_json_open(&j, NULL, '{');
	cudapool_json_number(&j, "error", found->error);
	cudapool_json_number(&j, "count", found->count);
	cudapool_json_number(&j, "bytes", (long long)found->bytes);
	cudapool_json_number(&j, "hot_bytes", (long long)found->hot_bytes);
	cudapool_json_string(&j, "dump", dump);
	cudapool_json_string(&j, "text", found->text);
	cudapool_json_close(&j, '}');
	if (cudapool_json_end(&j) < 0)
		return EXIT_FAILED;
	puts(json);
	return err ? EXIT_FAILED : EXIT_WELL;
}

static bool parse_token(const char *text, uint8_t token[CUDAPOOL_TOKEN_LEN])
{
	unsigned value;
	size_t i;

	if (strlen(text) != 2 * CUDAPOOL_TOKEN_LEN || strspn(text, "0123456789abcdef") != 2 * CUDAPOOL_TOKEN_LEN)
		return false;
	for (i = 0; i < CUDAPOOL_TOKEN_LEN; i++) {
		sscanf(text + 2 * i, "%2x", &value);
		token[i] = (uint8_t)value;
	}
	return true;
}

static int evict(const char *socket, const char *what, const char *tier_name)
{
	uint8_t token[CUDAPOOL_TOKEN_LEN];
	struct cudapool_client client;
	struct cudapool_found found;
	enum cudapool_tier tier = CUDAPOOL_TIER_STAGED;
	bool all = !strcmp(what, "all");
	int err;

	if (!all && !parse_token(what, token))
		return usage("'%s' is neither 'all' nor the token of a park (see --status)", what);
	if (tier_name && !strcmp(tier_name, "cold"))
		tier = CUDAPOOL_TIER_COLD;
	else if (tier_name && strcmp(tier_name, "staged"))
		return usage("--tier of --evict is staged or cold, not '%s'", tier_name);
	if (connect_to(&client, socket))
		return EXIT_FAILED;
	err = cudapool_client_evict(&client, all ? NULL : token, tier, MOVE_LIMIT_MS, &found);
	if (err)
		fprintf(stderr, "cudapoold: %s\n", client.text);
	cudapool_client_close(&client);
	return err && err != -EREMOTEIO ? EXIT_FAILED : show_found(&found, err);
}

static int prefetch(const char *socket, const char *path, const char *tier_name)
{
	struct cudapool_images images = {.purpose = CUDAPOOL_IMAGES_PREFETCH, .tier = CUDAPOOL_TIER_HOT};
	struct cudapool_client client;
	struct cudapool_found found;
	int dir, err;

	if (tier_name && !strcmp(tier_name, "staged"))
		images.tier = CUDAPOOL_TIER_STAGED;
	else if (tier_name && strcmp(tier_name, "hot"))
		return usage("--tier of --prefetch is hot or staged, not '%s'", tier_name);
	dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0) {
		fprintf(stderr, "cudapoold: %s: %s\n", path, strerror(errno));
		return EXIT_FAILED;
	}
	if (connect_to(&client, socket)) {
		close(dir);
		return EXIT_FAILED;
	}
	err = cudapool_client_images(&client, &images, dir, MOVE_LIMIT_MS, &found);
	if (err)
		fprintf(stderr, "cudapoold: %s\n", client.text);
	cudapool_client_close(&client);
	close(dir);
	return err && err != -EREMOTEIO ? EXIT_FAILED : show_found(&found, err);
}

static int show_options(const struct cudapool_options *options)
{
	static char json[CUDAPOOL_OPTIONS_JSON];
	int length = cudapool_options_json(options, json, sizeof(json));

	if (length < 0) {
		fprintf(stderr, "cudapoold: the options are too long to be shown\n");
		return EXIT_FAILED;
	}
	puts(json);
	return EXIT_WELL;
}

static int show_shim(const char *pid_text)
{
	char json[CUDAPOOL_SHIM_REPORT], *end;
	long pid = strtol(pid_text, &end, 10);

	if (*end || pid <= 0 || pid > 4194304)
		return usage("'%s' is no process id", pid_text);
	if (cudapool_shim_report((int)pid, SHIM_LIMIT_MS, json, sizeof(json)) == 0) {
		puts(json);
		return EXIT_WELL;
	}
	puts(json);
	return EXIT_FAILED;
}

/* ---- serving ---------------------------------------------------------------------------------- */

static int open_log(const struct cudapool_options *options)
{
	int fd = STDERR_FILENO;

	if (options->log_file[0]) {
		fd = open(options->log_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
		if (fd < 0) {
			fprintf(stderr, "cudapoold: cannot open the log %s: %s\n", options->log_file, strerror(errno));
			return -errno;
		}
	}
	cudapool_log_to(fd, (enum cudapool_log_level)options->log);
	return 0;
}

static void ready_in_foreground(void)
{
}

static void tell_parent(unsigned char status)
{
	if (ready_fd < 0)
		return;
	if (write(ready_fd, &status, 1) != 1) {
		/* It was killed: nobody waits. */
	}
	close(ready_fd);
	ready_fd = -1;
}

/* The parent may go; so may the terminal. */
static void ready_in_background(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null >= 0) {
		dup2(null, STDIN_FILENO);
		dup2(null, STDOUT_FILENO);
		dup2(null, STDERR_FILENO);
		close(null);
	}
	tell_parent(EXIT_WELL);
}

static int serve(const struct cudapool_options *options, bool background)
{
	char text[CUDAPOOL_TEXT_LEN] = "";
	int err = keeper_run(options, background ? ready_in_background : ready_in_foreground, text, sizeof(text));

	if (!err)
		return EXIT_WELL;
	fprintf(stderr, "cudapoold: %s\n", text);
	return err == -EPERM || err == -EACCES ? EXIT_UNFIT : EXIT_FAILED;
}

/* Forks twice, so that the pool is nobody's child and has no terminal; returns when it accepts, or has failed. */
static int daemonize(const struct cudapool_options *options)
{
	unsigned char status = EXIT_FAILED;
	int ends[2];
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) || (child = fork()) < 0) {
		fprintf(stderr, "cudapoold: cannot fork: %s\n", strerror(errno));
		return EXIT_FAILED;
	}
	if (child > 0) {
		close(ends[1]);
		waitpid(child, NULL, 0);
		return read(ends[0], &status, 1) == 1 ? status : EXIT_FAILED;
	}
	close(ends[0]);
	setsid();
	child = fork();
	if (child)
		_exit(child < 0 ? EXIT_FAILED : EXIT_WELL);
	ready_fd = ends[1];
	if (!chdir("/"))
		status = (unsigned char)serve(options, true);
	tell_parent(status);
	return status;
}

/* The file is read once, by the keeper: a worker that starts later must not trip over an edit of it. */
static void export_for_worker(const struct cudapool_options *options)
{
	char number[16];

#define EXPORT_NUMBER(name)                                                                                            \
	(snprintf(number, sizeof(number), "%d", options->name), setenv(environment[CUDAPOOL_OPTION_##name], number, 1))
#define EXPORT_STRING(name) setenv(environment[CUDAPOOL_OPTION_##name], options->name, 1)
	EXPORT_STRING(libcuda);
	EXPORT_NUMBER(contexts);
	EXPORT_NUMBER(threads);
	EXPORT_NUMBER(log);
	EXPORT_STRING(log_file);
#undef EXPORT_NUMBER
#undef EXPORT_STRING
}

static int work(const struct cudapool_options *options, const char *fd)
{
	struct worker_config config = {
		.fd = atoi(fd),
		.libcuda = options->libcuda,
		.contexts = options->contexts,
		.threads = options->threads,
	};

	close_range(3, (unsigned)config.fd - 1, 0);
	close_range((unsigned)config.fd + 1, ~0u, 0);
	return open_log(options) ? EXIT_FAILED : worker_main(&config);
}

int main(int argc, char **argv)
{
	static struct cudapool_options options;
	char text[CUDAPOOL_TEXT_LEN];
	const char *argument = "", *tier = NULL;
	enum verb verb = SERVE;
	bool verb_given = false;
	int flag;

	while ((flag = getopt_long(argc, argv, "", flags, NULL)) != -1) {
		if (flag == '?')
			return usage("%s", "the command line is wrong");
		if (flag > HELP) {
			if (!optarg[0])
				return usage("%s is empty", argv[optind - 1]);
			setenv(environment[flag - HELP - 1], optarg, 1);
			continue;
		}
		if (flag == TIER) {
			tier = optarg;
			continue;
		}
		if (verb_given)
			return usage("only one of %s at a time",
				     "--foreground, --daemonize, --status, --stop, --options, --shim, --evict, "
				     "--prefetch, --inspect, --verify, --version, --help");
		verb_given = true;
		verb = (enum verb)flag;
		argument = optarg;
	}
	if (optind < argc)
		return usage("what is '%s'?", argv[optind]);
	if (tier && verb != EVICT && verb != PREFETCH)
		return usage("--tier belongs to --evict or --prefetch%s", "");
	if (verb == HELP) {
		fputs(help, stdout);
		return EXIT_WELL;
	}
	if (verb == VERSION) {
		printf("cudapoold %s\n", build_name());
		return EXIT_WELL;
	}
	if (verb == SHIM)
		return show_shim(argument);
	if (verb == INSPECT || verb == VERIFY)
		return inspect_image(argument, verb == VERIFY) ? EXIT_FAILED : EXIT_WELL;
	if (cudapool_options_read(&options, verb == OPTIONS ? ~0u : CUDAPOOL_READER_POOL, verb != WORKER, text)) {
		fprintf(stderr, "cudapoold: %s\n", text);
		return EXIT_USAGE;
	}
	switch (verb) {
	case STATUS:
		return show_status(options.socket);
	case STOP:
		return stop(options.socket);
	case EVICT:
		return evict(options.socket, argument, tier);
	case PREFETCH:
		return prefetch(options.socket, argument, tier);
	case OPTIONS:
		return show_options(&options);
	case WORKER:
		return work(&options, argument);
	default:
		break;
	}
	/* Whoever started us may have left us files of its own: they are not ours to keep open. */
	close_range((unsigned)notify_init(), ~0u, 0);
	export_for_worker(&options);
	if (open_log(&options))
		return EXIT_FAILED;
	return verb == DAEMONIZE ? daemonize(&options) : serve(&options, false);
}
