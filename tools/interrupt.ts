/** Programs that leave nothing behind, however they end. */

const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/**
 * Runs WORK, then undoes what it has put into its stack: also after a failure, and also after Ctrl-C, a SIGTERM or a
 * closed terminal; then the status is 128 + n, as a shell has it. WORK looks at the signal before it starts anything:
 * what it starts while the undoing is under way would stay.
 */
export async function undoingAll(
  work: (undo: AsyncDisposableStack, interrupted: AbortSignal) => Promise<number>,
): Promise<number> {
  const undo = new AsyncDisposableStack();
  const controller = new AbortController();
  let status: number | undefined;
  const signalled = new Promise<number>((resolve) => {
    for (const [name, number] of Object.entries(SIGNALS)) {
      Deno.addSignalListener(name as keyof typeof SIGNALS, () => {
        controller.abort();
        resolve(status ??= 128 + number);
      });
    }
  });
  let result: number;
  try {
    result = await Promise.race([work(undo, controller.signal), signalled]);
  } finally {
    await undo.disposeAsync();
  }
  return status ?? result; // also where the signal came during the undoing
}

/** Never comes back once the program was interrupted. */
export function goOn(interrupted: AbortSignal): Promise<void> {
  return interrupted.aborted ? new Promise(() => {}) : Promise.resolve();
}
