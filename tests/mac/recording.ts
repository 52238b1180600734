/**
 * What `tests/mac/record` has saved, and what each case must mean to lima-guard. A case's name says the state in which
 * it was recorded, the file `known` what the recorder knew; so the same checks are for every recording, by name.
 */

import assert from "node:assert/strict";
import { type Answer, readDisabled, readLoaded, readUser } from "../../install.ts";
import { readLsof, readPs } from "../../lima_guard.ts";
import type { Case } from "./cases.ts";

/** What a state means, by the end of a case's name. `loaded` and `pid` are of readLoaded(). */
const STATES: readonly { readonly name: RegExp; readonly loaded: boolean; readonly pid?: boolean }[] = [
  { name: /\.(gone|never-loaded)$/, loaded: false },
  { name: /\.(running|slow-running|kickstarted|arguments|disabled-and-loaded)$/, loaded: true, pid: true },
  { name: /\.exit-timeout-(none|\d+)$/, loaded: true, pid: true },
  { name: /\.(waits|ended-\d+|killed|no-program|no-log)$/, loaded: true, pid: false },
];
const AGENT_MOST_S = 60;

/** Checks one case; false where its name asks for no check, or where there is no answer to check. */
export function check(seen: Case): boolean {
  if (seen.skipped !== undefined || seen.late) return false;
  const group = seen.name.slice(0, seen.name.indexOf("."));
  if (group === "print") return checkPrint(seen);
  if (group === "print-disabled") return checkDisabled(seen);
  if (group === "ps" || group === "ps-bare") return checkPs(seen);
  if (group === "lsof") return checkLsof(seen);
  if (group === "id") return checkUser(seen);
  if (seen.name === "sysctl.kern.bootsessionuuid") return checkBoot(seen);
  return false;
}

function checkPrint(seen: Case): boolean {
  const answer: Answer = { ...seen, code: seen.status };
  const loaded = readLoaded(answer);
  if (/\.(ending|deaf)\.\d+$/.test(seen.name)) {
    // It ends at a time of its own: what must not be is an answer that cannot be read.
    assert.ok(loaded.kind === "absent" || (loaded.kind === "loaded" && (loaded.isEnding || !loaded.pid)), said(seen));
    return true;
  }
  const state = STATES.find(({ name }) => name.test(seen.name));
  if (!state) return false;
  assert.equal(loaded.kind, state.loaded ? "loaded" : "absent", said(seen));
  if (loaded.kind !== "loaded") return true;
  assert.equal(loaded.pid !== undefined, state.pid, said(seen));
  assert.equal(loaded.isEnding, false, said(seen));
  const wanted = /\.exit-timeout-(\d+)$/.exec(seen.name)?.[1];
  const most = seen.name.startsWith("print.agent.") ? AGENT_MOST_S : Infinity;
  if (wanted !== undefined) {
    const granted = loaded.exitTimeoutS;
    assert.ok(granted === Number(wanted) || granted === Math.min(Number(wanted), most), said(seen));
  }
  return true;
}

function checkDisabled(seen: Case): boolean {
  const label = seen.known.get("label");
  if (label === undefined) return false;
  assert.equal(seen.status, 0, said(seen));
  assert.equal(readDisabled(seen.stdout, label), seen.name.endsWith(".one-disabled"), said(seen));
  return true;
}

function checkPs(seen: Case): boolean {
  const pid = Number(seen.known.get("pid"));
  // A bare environment has the time zone and the language of the machine; the product does not read such an answer.
  if (!(pid > 0) || seen.name.startsWith("ps-bare.")) return false;
  const { rows, unreadable } = readPs(seen.stdout);
  assert.deepEqual(unreadable, [], said(seen));
  const row = rows.find((one) => one.pid === pid);
  assert.ok(row, said(seen));
  const from = Number(seen.known.get("from"));
  if (!(from > 0)) return true;
  assert.equal(row.uid, Number(seen.known.get("uid")), said(seen));
  assert.equal(row.ppid, Number(seen.known.get("ppid")), said(seen));
  const started = Date.parse(`${row.started.replaceAll(/ +/g, " ")} UTC`) / 1000;
  assert.ok(Math.abs(started - from) < 60, `${started} is not about ${from}: ${said(seen)}`);
  return true;
}

function checkLsof(seen: Case): boolean {
  if (seen.status === 127 || seen.known.size === 0) return false;
  const holders = readLsof(seen.stdout).map(({ pid }) => pid).sort();
  const held = seen.known.get("held");
  if (held !== undefined) {
    // Of another user: seen or not, but never taken for a process that it is not.
    for (const pid of holders) assert.equal(pid, Number(held), said(seen));
    return true;
  }
  const what = seen.name.slice("lsof.".length);
  const pairs = what === "written" || what === "one-and-none" ? ["written"] : [];
  const pids = pairs.map((name) => Number(seen.known.get(name)));
  if (what === "two") assert.equal(holders.length, 2, said(seen));
  else assert.deepEqual(holders, pids, said(seen));
  return true;
}

function checkUser(seen: Case): boolean {
  // Its number is -2; whether that is read does not matter.
  if (seen.name === "id.negative-number") return false;
  const user = seen.status === 0 ? readUser(seen.stdout) : undefined;
  const name = seen.known.get("name");
  if (name === undefined) {
    assert.equal(user, undefined, said(seen));
    return true;
  }
  assert.ok(user, said(seen));
  assert.equal(user.name, name);
  for (const key of ["uid", "gid"] as const) assert.equal(user[key], Number(seen.known.get(key)), said(seen));
  const home = seen.known.get("home");
  if (home !== undefined) assert.equal(user.home, home, said(seen));
  return true;
}

function checkBoot(seen: Case): boolean {
  if (seen.status === 127) return false;
  assert.match(seen.stdout, /^[0-9A-F]{8}(-[0-9A-F]{4}){3}-[0-9A-F]{12}\n$/, said(seen));
  return true;
}

function said({ name, status, stdout, stderr }: Case): string {
  return `${name}: status ${status}\n${stdout}${stderr}`;
}
