// SPDX-License-Identifier: MIT
/* Checkpoint actions: queued for the worker, limited in time, and seen through when a worker is lost. */
#include "action.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "status.h"
#include "text.h"
#include "worker_link.h"

#define LOSSES_MAX 3 /* an action that outlived so many workers is what kills them */

TAILQ_HEAD(action_list, action);

static struct action_list queued = TAILQ_HEAD_INITIALIZER(queued);
static struct action_list running = TAILQ_HEAD_INITIALIZER(running);
static struct action_list ended = TAILQ_HEAD_INITIALIZER(ended);
static unsigned queued_count, running_count;
static int threads;
static unsigned limit_ms;
static uint32_t last_id;
static struct loop_timer pump_timer, report_timer;
static char loss[CUDAPOOL_TEXT_LEN] = "died"; /* what became of the last worker that was lost */

const char *action_name(enum cudapool_op op)
{
	static const char *const names[] = {"?",          "state",   "restore-tid", "lock",
					    "checkpoint", "restore", "unlock",      "shim",
					    "unpark",     "saved"};

	return op <= CUDAPOOL_OP_LAST ? names[op] : names[0];
}

const char *action_state_name(int state)
{
	static const char *const names[] = {"running", "locked", "checkpointed", "failed"};

	return state >= 0 && state <= CUDAPOOL_PROCESS_FAILED ? names[state] : "in an unknown state";
}

static bool changes_state(enum cudapool_op op)
{
	return op >= CUDAPOOL_OP_LOCK && op <= CUDAPOOL_OP_UNLOCK;
}

/* Removes it from the list that it is in. */
static void take_out(struct action *action)
{
	loop_timer_cancel(&action->limit);
	if (action->running) {
		TAILQ_REMOVE(&running, action, link);
		running_count--;
	} else {
		TAILQ_REMOVE(&queued, action, link);
		queued_count--;
	}
	action->running = false;
}

/* done() is called from a timer of its own, so that it may do whatever it likes. */
static void end(struct action *action, int error)
{
	take_out(action);
	action->error = error;
	action->step = ACTION_ENDED;
	TAILQ_INSERT_TAIL(&ended, action, link);
	loop_timer_set(&report_timer, 0);
}

static __attribute__((format(printf, 3, 4))) void end_with(struct action *action, int error, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	text_replace(action->text, format, args);
	va_end(args);
	end(action, error);
}

static void report_ended(struct loop_timer *timer)
{
	struct action *action = TAILQ_FIRST(&ended);

	TAILQ_REMOVE(&ended, action, link);
	if (!TAILQ_EMPTY(&ended))
		loop_timer_set(timer, 0);
	loop_timer_set(&pump_timer, 0);
	if (action->error != -EALREADY)
		status_count_action(action->op, action->error, action->elapsed_us);
	cudapool_log(CUDAPOOL_LOG_ACTION, "%s %d: %s%s%s, %u us", action_name(action->op), action->process->pid,
		     action->error ? strerror(-action->error) : "ok", action->text[0] ? ": " : "", action->text,
		     action->elapsed_us);
	action->done(action);
}

/* Hands the action's current step to the worker. Where that fails, the worker is on its way out, and then so is this
 * step. */
static void send_step(struct action *action)
{
	struct worker_message message = {.kind = WORKER_ACTION, .id = ++last_id, .pid = action->process->pid};
	struct link_info info;

	message.op = action->step == ACTION_ACT ? action->op : CUDAPOOL_OP_STATE;
	message.timeout_ms = action->timeout_ms;
	/* The driver's limit for a lock is below ours, so that a busy application is told from a hung worker. */
	if (!message.timeout_ms || message.timeout_ms > limit_ms / 10 * 9)
		message.timeout_ms = limit_ms / 10 * 9;
	link_info(&info);
	action->id = message.id;
	action->generation = info.generation;
	loop_timer_set(&action->limit, limit_ms);
	link_send(&message);
}

enum verdict { VERDICT_DONE, VERDICT_RETRY, VERDICT_FAILED };

/*
 * An action's worker is gone, or its second attempt was refused. What counts now is what the driver says of the
 * process, not what we believe. Measured on the H200 (docs/results/): when the caller is killed after its call took
 * effect, the driver finishes the action by itself, in the process, and cuCheckpointProcessGetState waits for that
 * (0.5 to 4.3 s were seen, more with more memory) and then tells the new state; so the question has the whole action
 * limit again. When the caller is killed earlier, the state is as before, and a second attempt works. Each changing
 * action leads from one state to one other:
 *
 *   - the process is where the action leads, and was not there before: the action is done;
 *   - it is still where the action starts: nothing happened, so it is tried again, once;
 *   - anything else, or no answer: it failed, and the error names the state that the process is in.
 *
 * An action that changes nothing is simply asked once more.
 */
static enum verdict follow_state(enum cudapool_op op, int before, int now, bool retried)
{
	static const struct {
		int from, to;
	} path[] = {
		[CUDAPOOL_OP_LOCK] = {CUDAPOOL_PROCESS_RUNNING, CUDAPOOL_PROCESS_LOCKED},
		[CUDAPOOL_OP_CHECKPOINT] = {CUDAPOOL_PROCESS_LOCKED, CUDAPOOL_PROCESS_CHECKPOINTED},
		[CUDAPOOL_OP_RESTORE] = {CUDAPOOL_PROCESS_CHECKPOINTED, CUDAPOOL_PROCESS_LOCKED},
		[CUDAPOOL_OP_UNLOCK] = {CUDAPOOL_PROCESS_LOCKED, CUDAPOOL_PROCESS_RUNNING},
	};

	if (!changes_state(op))
		return retried ? VERDICT_FAILED : VERDICT_RETRY;
	if (now == path[op].to && before != path[op].to)
		return VERDICT_DONE;
	if (now == path[op].from && !retried)
		return VERDICT_RETRY;
	return VERDICT_FAILED;
}

static void follow(struct action *action, int now)
{
	switch (follow_state(action->op, action->before, now, action->retried)) {
	case VERDICT_DONE:
		cudapool_log(CUDAPOOL_LOG_INFO, "%s %d: its worker %s, and the driver completed it all the same",
			     action_name(action->op), action->process->pid, loss);
		action->text[0] = '\0';
		action->cu_result = 0;
		end(action, 0);
		break;
	case VERDICT_RETRY:
		action->retried = true;
		action->step = ACTION_ACT;
		send_step(action);
		break;
	case VERDICT_FAILED:
		if (action->cu_result)
			end_with(action, -EREMOTEIO,
				 "%.150s, at the second attempt (a worker %.40s); the process is %s", action->text,
				 loss, action_state_name(now));
		else
			end_with(action, action->hung ? -ETIMEDOUT : -EIO,
				 "the worker %.80s in the %s; the process is %s", loss, action_name(action->op),
				 action_state_name(now));
		break;
	}
}

/* False: the action ends here. */
static bool before_known(struct action *action, const struct worker_message *result)
{
	int err;

	/* A driver that will not tell is asked for the action all the same: its refusal is the better answer. */
	action->before = result->error ? ACTION_STATE_UNKNOWN : result->value;
	if (action->only_in != ACTION_STATE_UNKNOWN && action->only_in != action->before) {
		end_with(action, -EALREADY, "the process is %s", action_state_name(action->before));
		return false;
	}
	err = action->begin ? action->begin(action) : 0;
	if (err) {
		end(action, err);
		return false;
	}
	return true;
}

static void acted(struct action *action, const struct worker_message *result)
{
	action->cu_result = result->cu_result;
	action->value = result->value;
	action->elapsed_us = result->elapsed_us;
	memcpy(action->text, result->text, sizeof(action->text));
	if (result->error && action->retried && changes_state(action->op)) {
		action->step = ACTION_FOLLOW;
		send_step(action);
	} else {
		end(action, result->error);
	}
}

/*
 * The driver goes by numbers, and only a process that still lives has kept its own. Whatever the driver said
 * of one that has ended, it may have said of another process, and done it to that one.
 */
static void process_ended(struct action *action, const struct worker_message *result)
{
	int pid = action->process->pid;

	if (action->step == ACTION_ACT && !result->error && changes_state(action->op))
		end_with(action, -ESRCH,
			 "process %d ended during the %s; if another process has got its number, that one may be "
			 "affected: see cuda-checkpoint --get-state --pid %d",
			 pid, action_name(action->op), pid);
	else
		end_with(action, -ESRCH, "process %d ended", pid);
}

void actions_result(const struct worker_message *message)
{
	struct action *action;

	TAILQ_FOREACH(action, &running, link)
		if (action->id == message->id)
			break;
	if (!action)
		return;
	if (!process_alive(action->process)) {
		process_ended(action, message);
		return;
	}
	switch (action->step) {
	case ACTION_BEFORE:
		if (before_known(action, message)) {
			action->step = ACTION_ACT;
			send_step(action);
		}
		break;
	case ACTION_ACT:
		acted(action, message);
		break;
	case ACTION_FOLLOW:
		follow(action, message->error ? ACTION_STATE_UNKNOWN : message->value);
		break;
	case ACTION_ENDED: /* those are in no list that is searched */
		break;
	}
}

static void limit_reached(struct loop_timer *timer)
{
	struct action *action = container_of(timer, struct action, limit);

	if (!action->running) {
		end_with(action, -ETIMEDOUT, "the pool's worker was not free within %u s", limit_ms / 1000);
		return;
	}
	action->hung = true;
	link_replace("hung in an action");
}

void actions_worker_lost(const char *what)
{
	struct action *action;

	snprintf(loss, sizeof(loss), "%s", what);
	/* Back to the head of the queue in the same order; from there they follow what the next worker hears. */
	while ((action = TAILQ_LAST(&running, action_list))) {
		action->losses++;
		if (action->losses >= LOSSES_MAX || (action->hung && action->step != ACTION_ACT)) {
			end_with(action, action->hung ? -ETIMEDOUT : -EIO, "the worker %s when asked about process %d",
				 loss, action->process->pid);
			continue;
		}
		take_out(action);
		if (action->step == ACTION_ACT)
			action->step = ACTION_FOLLOW;
		if (action->hung)
			action->retried = true; /* whoever asked has waited long enough */
		TAILQ_INSERT_HEAD(&queued, action, link);
		queued_count++;
		loop_timer_set(&action->limit, limit_ms);
	}
}

static bool has(const struct action_list *list, const struct process *process)
{
	const struct action *action;

	TAILQ_FOREACH(action, list, link)
		if (process_same(action->process, process))
			return true;
	return false;
}

/* Also while whoever asked for the last action has not heard of its end: what follows may depend on it. */
static bool process_busy(const struct process *process)
{
	return has(&running, process) || has(&ended, process);
}

/* Gives the worker what it can take. */
static void pump(struct loop_timer *timer)
{
	struct action *action, *next;
	struct link_info info;

	link_info(&info);
	for (action = TAILQ_FIRST(&queued); action; action = next) {
		next = TAILQ_NEXT(action, link);
		if (!process_alive(action->process)) {
			end_with(action, -ESRCH, "process %d ended", action->process->pid);
		} else if (info.state == CUDAPOOL_WORKER_FAILED) {
			if (action->losses)
				end_with(action, -EIO, "the worker %.60s in the %s, and there is no other: %.120s",
					 loss, action_name(action->op), info.text);
			else
				end_with(action, -ENODEV, "%s", info.text);
		} else if (info.ready && (int)running_count < threads && !process_busy(action->process)) {
			take_out(action);
			action->running = true;
			TAILQ_INSERT_TAIL(&running, action, link);
			running_count++;
			send_step(action);
		}
	}
}

void actions_worker_changed(void)
{
	loop_timer_set(&pump_timer, 0);
}

void actions_init(int threads_at_once, int action_limit_s)
{
	threads = threads_at_once;
	limit_ms = (unsigned)action_limit_s * 1000;
	pump_timer.fire = pump;
	report_timer.fire = report_ended;
}

void action_start(struct action *action)
{
	action->step = changes_state(action->op) ? ACTION_BEFORE : ACTION_ACT;
	action->before = ACTION_STATE_UNKNOWN;
	action->limit = (struct loop_timer){.fire = limit_reached};
	TAILQ_INSERT_TAIL(&queued, action, link);
	queued_count++;
	loop_timer_set(&action->limit, limit_ms);
	loop_timer_set(&pump_timer, 0);
	link_look_again();
}

bool action_withdraw(struct action *action)
{
	if (action->running || action->losses || action->step == ACTION_ENDED)
		return false;
	take_out(action);
	return true;
}

void actions_count(unsigned *queued_now, unsigned *running_now)
{
	*queued_now = queued_count;
	*running_now = running_count;
}
