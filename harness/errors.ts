// SPDX-License-Identifier: MIT
// The one kind of error that reaches the user: a code for programs, a message, and a hint that names the fix.

export const EXIT = {
  OK: 0,
  FAILED: 1,
  USAGE: 2,
  UNFIT: 3,
  REGRESSION: 4,
  INTERRUPTED: 130,
} as const;
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

export type ErrorCode = `ERR_CUDAPOOL_${string}`;

export interface ErrorOptions {
  /** What the user can do about it: a command where there is one. */
  hint?: string | undefined;
  cause?: unknown;
  /** Default: EXIT.FAILED. */
  exit?: ExitCode;
  /** More for `--json`: plain data. */
  details?: Record<string, unknown>;
  /** Last lines of a log or of a program's output, shown below the message. */
  lines?: readonly string[];
}

export class CudapoolError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly exit: ExitCode;
  readonly details: Record<string, unknown> | undefined;
  readonly lines: readonly string[];

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'CudapoolError';
    this.code = code;
    this.hint = options.hint;
    this.exit = options.exit ?? EXIT.FAILED;
    this.details = options.details;
    this.lines = options.lines ?? [];
  }
}

/** The command line is wrong (exit code 2). */
export const usageError = (message: string, hint?: string): CudapoolError =>
  new CudapoolError('ERR_CUDAPOOL_USAGE', message, { hint, exit: EXIT.USAGE });

/** The machine lacks something that the command needs (exit code 3). */
export const unfitError = (code: ErrorCode, message: string, hint: string, cause?: unknown): CudapoolError =>
  new CudapoolError(code, message, { hint, cause, exit: EXIT.UNFIT });

/** Whatever was thrown, as a CudapoolError; what nobody expected keeps its stack as `cause`. */
export function asCudapoolError(thrown: unknown): CudapoolError {
  if (thrown instanceof CudapoolError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  const why = (thrown as NodeJS.ErrnoException | undefined)?.code;
  if (why === 'EACCES' || why === 'EPERM' || why === 'EROFS') {
    return unfitError(
      'ERR_CUDAPOOL_PERMISSION',
      message,
      'run it again with sudo, or as the owner of that place',
      thrown,
    );
  }
  if (why === 'ENOSPC' || why === 'EDQUOT') {
    return unfitError('ERR_CUDAPOOL_NO_SPACE', message, 'make room there: df -h shows where it is scarce', thrown);
  }
  return new CudapoolError('ERR_CUDAPOOL_INTERNAL', message, {
    cause: thrown,
    hint: 'this is a defect of cudapool; CUDAPOOL_DEBUG=1 shows where it happened',
  });
}

/** `{code, message, hint, cause}`, as `--json` prints it. */
export function errorToJson(error: CudapoolError): Record<string, unknown> {
  const cause = error.cause;
  return {
    code: error.code,
    message: error.message,
    ...(error.hint !== undefined && { hint: error.hint }),
    ...(cause !== undefined && { cause: cause instanceof Error ? cause.message : String(cause) }),
    ...(error.details !== undefined && { details: error.details }),
    ...(error.lines.length > 0 && { lines: error.lines }),
  };
}

/** Refuses to go on unless the process runs as root. `what` completes "only root may …". */
export function requireRoot(what: string): void {
  if (process.geteuid?.() === 0) return;
  throw unfitError('ERR_CUDAPOOL_NOT_ROOT', `only root may ${what}`, 'run it again with sudo');
}
