/** What lima-guard needs of the volume below LIMA_HOME: lines that are synced, and locks that keep a second process out. */

import { line, say } from "./launchd.ts";

const LINES = 20;

/** One sentence about the folder; an error is an answer too. */
export async function askVolume(folder: string): Promise<string> {
  return `${await timedSync(folder)}, ${await locks(folder)}`;
}

async function timedSync(folder: string): Promise<string> {
  const path = `${folder}/lima-guard-question.${Deno.pid}`;
  try {
    using file = await Deno.open(path, { create: true, append: true });
    const began = performance.now();
    for (let n = 0; n < LINES; n++) {
      await file.write(new TextEncoder().encode("x\n"));
      await file.syncData();
    }
    return `${((performance.now() - began) / LINES).toFixed(1)} ms a synced line`;
  } catch (error) {
    return `no synced line: ${line(String(error))}`;
  } finally {
    await Deno.remove(path).catch(() => {});
  }
}

async function locks(folder: string): Promise<string> {
  const path = `${folder}/lima-guard-question.${Deno.pid}.lock`;
  try {
    using file = await Deno.open(path, { create: true, write: true });
    if (!await file.tryLock(true)) return "no lock";
    const code = `Deno.exit(Deno.openSync(Deno.args[0], { write: true }).tryLockSync(true) ? 1 : 0)`;
    const second = await say([Deno.execPath(), "eval", code, path]);
    return ["a lock keeps a second process out", "a lock keeps no second process out"][second.code] ??
      line(second.text);
  } catch (error) {
    return `no lock: ${line(String(error))}`;
  } finally {
    await Deno.remove(path).catch(() => {});
  }
}
