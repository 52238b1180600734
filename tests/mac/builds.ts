/** Other builds of lima-guard, for the tests of an upgrade: a checkout with a few words changed. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";
import type { OtherBuild } from "./ground.ts";

/** What `deno task compile` needs, and the stand-in for a Mac of install.ts. */
const PRETENDED = ["here", "host", "tools", "mac"].map((name) => `tests/install_${name}.ts`);
const NEEDED = ["lima_guard.ts", "install.ts", "deno.json", "deno.lock", "tools", ...PRETENDED];
/**
 * The roles in which a build ends at once; every one answers with its version. One of them starts slowly: a Mac
 * under load.
 */
const BUILDS: Record<OtherBuild, { readonly version: string; readonly dead?: string; readonly startMs?: number }> = {
  mute: { version: "0.99.1", dead: "--stop" },
  dead: { version: "0.99.1", dead: "--run", startMs: 1500 },
  newer: { version: "0.99.2" },
};

/** Copies the checkout to a new folder, as another build. Returns its version. */
export function copyCheckout(to: string, which: OtherBuild): string {
  Deno.mkdirSync(`${to}/tests`, { recursive: true });
  for (const name of NEEDED) copy(`${project}/${name}`, `${to}/${name}`);
  const path = `${to}/lima_guard.ts`;
  const { version, dead, startMs = 0 } = BUILDS[which];
  const words: [RegExp, string][] = [[/^export const VERSION = ".*";$/m, `export const VERSION = "${version}";`]];
  if (dead !== undefined) {
    words.push([
      /^export function runAsProgram\(\): void \{$/m,
      `$&\n  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ${startMs});\n` +
      `  if (Deno.args.includes("${dead}")) Deno.exit(70);`,
    ]);
  }
  let text = Deno.readTextFileSync(path);
  for (const [from, into] of words) {
    assert.match(text, from);
    text = text.replace(from, into);
  }
  Deno.writeTextFileSync(path, text);
  return version;
}

function copy(from: string, to: string): void {
  if (!Deno.statSync(from).isDirectory) return Deno.copyFileSync(from, to);
  Deno.mkdirSync(to);
  for (const { name } of Deno.readDirSync(from)) copy(`${from}/${name}`, `${to}/${name}`);
}
