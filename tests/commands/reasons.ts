/**
 * Why something is in the way, and what a command has to ask for so that its output can change that answer. Each reason
 * that lima-guard gives has a row here, and the first row that fits counts.
 */

import assert from "node:assert/strict";
import { bare, commandsIn, cut, unquoted } from "./hints.ts";

export interface Reason {
  readonly what: string;
  readonly because: string;
  readonly hint?: string;
}

/** Whether one of the commands asks; `found` is what the row's pattern has found in the reason. */
type Asks = (command: readonly string[], reason: Reason, found: readonly (string | undefined)[]) => boolean;

const runs = (...programs: string[]): Asks => ([program = ""]) => programs.includes(program);
/** lsof, for the file or socket in question. */
const lsofOf =
  (which: (reason: Reason, found: readonly (string | undefined)[]) => string | undefined): Asks =>
  (command, reason, found) => command[0] === "lsof" && command.includes(which(reason, found) ?? "");
/** ps, for the process that the reason names. */
const psOf: Asks = ([program, ...words], { what, because }) =>
  program === "ps" && (words.at(-1) ?? "").split(",").every((pid) => `${what} ${because}`.match(/\d+/g)?.includes(pid));
/** A look at the path, at a folder above it, or at what is in it. */
const looksAt =
  (which: (reason: Reason, found: readonly (string | undefined)[]) => string | undefined): Asks =>
  (command, reason, found) => {
    const path = which(reason, found);
    return ["ls", "mv", "chmod", "chown"].includes(command[0] ?? "") &&
        command.some((word) => word.startsWith("/") && path !== undefined && `${path}/`.startsWith(`${word}/`)) ||
      command[0] === "ls" && command.some((word) => path !== undefined && word.startsWith(`${path}/`));
  };
const guard = (option: string): Asks => (command) => command[0] === "lima-guard" && command.includes(option);
const what = ({ what }: Reason) => what;
const first = (_: Reason, found: readonly (string | undefined)[]) => found[1];
/** Nothing is unknown, and no command is the answer. */
const NOTHING = "nothing is unknown";

const ROWS: readonly [because: RegExp, asks: Asks | typeof NOTHING][] = [
  // Sockets: who is at the other end?
  [
    /; but (\/.*) (?:takes connections|cannot be (?:asked|looked at))/s,
    (...of) => lsofOf(first)(...of) || looksAt(first)(...of),
  ],
  [/^it (?:takes connections|cannot be asked)/, lsofOf(what)],
  [/^it cannot be looked at/, looksAt(what)],
  // Processes: is there one, and whose is it?
  [/^whether (?:a process has it open|lima-guard supervises it) is unknown/, lsofOf(what)],
  [/^whether a process still uses it was not found out in time/, guard("--pre")],
  [/has it open for writing/, psOf],
  [/^(?:ps |there is no ps|rows of ps)/, runs("ps")],
  [/^PID \d+ is unknown: /, psOf],
  [/^(?:it may be|it looks like|it is none of Lima's programs|it is a `limactl start`)/, psOf],
  [/^uid \d+ has no entry in the user database/, runs("ps")],
  [/holds its lock$|holds its lock; |^it cannot be locked/, runs("ps", "lsof")],
  // Processes that are known, and what ends the matter.
  [/is stopped by a signal/, (command) => command[0] === "kill" && command.includes("-CONT")],
  [/does not answer(?: yet|, and its boot)|, its driver (?:is not up|has died)|^several host agents/, guard("--stop")],
  [/still lives$/, guard("--stop")],
  [/still lives, and its lima\.yaml is gone$/, psOf],
  [/(?:is|are) alive$/, guard("--status")],
  [/which user that is could not be found out/, looksAt(what)],
  [/gave no whole answer|supervises it|^it (?:runs and )?belongs to |^several Lima homes have/, runs("lima-guard")],
  [/^no user here has uid/, (command) => command[0] === "chown"],
  // Files: what are they, whose are they, and may they be read?
  [/^it says (\/.*), which cannot be looked at$/s, looksAt(first)],
  [/^disk .* is in use by (\/.*)$/s, (command, reason, found) => {
    const home = found[1]!.slice(0, found[1]!.lastIndexOf("/"));
    return guard("--stop")(command, reason, found) && command.includes(home) || looksAt(first)(command, reason, found);
  }],
  [/^additional disk \S+ is not there/, runs("ls")],
  [/and cannot be removed: /, looksAt(what)],
  [/os error \d+|cannot be (?:read|listed)|^it is (?:a directory|empty)|^killed$/, looksAt(what)],
  [/^(?:its name is no instance name|it holds no lima\.yaml)/, NOTHING],
  [/^no such instance|^there is no \S+ here, but/, NOTHING],
  [/PID \d+ is ".*", not socket_vmnet/, runs("rm", "ps")],
  [/^ssh\.localPort of lima\.yaml/, lsofOf(({ what }) => `-iTCP:${/\d+/.exec(what)?.[0]}`)],
  [/^the host agent says that the instance is degraded/, runs("tail")],
  // Jobs of launchd.
  [/^launchd gives it/, guard("--install")],
  [/^it is (?:disabled|registered twice)|launchd jobs: |^its plist has no UserName/, runs("launchctl", "limactl")],
  [/^it runs without its job/, runs("launchctl", "lima-guard")],
  [/^launchd started it again/, runs("launchctl")],
];

const met = new Set<RegExp>();

/** Fails where a reason is new, or where none of the commands beside it asks for what is missing. */
export function assertAsked(reason: Reason): void {
  const said = `${reason.what}: ${reason.because} (hint: ${reason.hint})`;
  const row = ROWS.find(([because]) => because.test(reason.because));
  assert.ok(row, `this reason has no row in tests/commands/reasons.ts: ${said}`);
  const [because, asks] = row;
  met.add(because);
  if (asks === NOTHING) return;
  const found = because.exec(reason.because)!;
  const commands = commandsIn(reason.hint ?? "").map((command) => bare(cut(command)).map(unquoted));
  // A process is ended by a person only where the question is whose it is.
  const mayEnd = asks === psOf || /stopped by a signal/.test(reason.because);
  assert.ok(mayEnd || commands.every(([program]) => program !== "kill"), `another process may be ended: ${said}`);
  assert.ok(commands.some((command) => asks(command, reason, found)), `no command asks for what is missing: ${said}`);
}

/** The reasons that no test has given. */
export function unmet(): string[] {
  return ROWS.map(([because]) => because).filter((because) => !met.has(because)).map(String);
}
