/** What `--run` decides without touching anything: states, restart back-off, and how long launchd lets it stop. */

import assert from "node:assert/strict";
import fc from "fast-check";
import { backoffMs, budgetOf, readJobPlist, readPrint, restartBackoffMs, transition } from "../lima_guard.ts";
import type { JournalLine, RunAction, RunEvent, RunState } from "./facts.ts";

const STATES: readonly RunState[] = ["preparing", "supervising", "stopping", "leaving"];
const EVENTS: readonly RunEvent[] = ["clear", "healthy", "refused", "ended", "stop", "stopped"];

// ── states × events ──

/** Every cell. A look that began before the stop may still answer in `stopping`; nothing matters once it leaves. */
const CELLS: readonly (readonly [RunState, RunEvent, RunState, RunAction])[] = [
  ["preparing", "clear", "supervising", "start"],
  ["preparing", "healthy", "supervising", "adopt"],
  ["preparing", "refused", "leaving", "leave"],
  ["preparing", "ended", "preparing", "impossible"],
  ["preparing", "stop", "stopping", "stop"],
  ["preparing", "stopped", "preparing", "impossible"],
  ["supervising", "clear", "supervising", "impossible"],
  ["supervising", "healthy", "supervising", "impossible"],
  ["supervising", "refused", "supervising", "impossible"],
  ["supervising", "ended", "leaving", "leave"],
  ["supervising", "stop", "stopping", "stop"],
  ["supervising", "stopped", "supervising", "impossible"],
  ["stopping", "clear", "stopping", "ignore"],
  ["stopping", "healthy", "stopping", "ignore"],
  ["stopping", "refused", "stopping", "ignore"],
  ["stopping", "ended", "stopping", "ignore"],
  ["stopping", "stop", "stopping", "ignore"],
  ["stopping", "stopped", "leaving", "leave"],
  ["leaving", "clear", "leaving", "ignore"],
  ["leaving", "healthy", "leaving", "ignore"],
  ["leaving", "refused", "leaving", "ignore"],
  ["leaving", "ended", "leaving", "ignore"],
  ["leaving", "stop", "leaving", "ignore"],
  ["leaving", "stopped", "leaving", "ignore"],
];

for (const [state, event, next, action] of CELLS) {
  Deno.test(`${state} × ${event} → ${next}, ${action}`, () => {
    assert.deepEqual(transition(state, event), [next, action]);
  });
}

Deno.test("each state meets each event", () => {
  const met = new Set(CELLS.map(([state, event]) => `${state} ${event}`));
  assert.equal(met.size, STATES.length * EVENTS.length);
});

/** What happens one after the other: the actions, and the state in the end. */
function walk(events: readonly RunEvent[]): { state: RunState; actions: RunAction[]; states: RunState[] } {
  let state: RunState = "preparing";
  const actions: RunAction[] = [];
  const states: RunState[] = [state];
  for (const event of events) {
    const cell: readonly [RunState, RunAction] = transition(state, event);
    const [next, action] = cell;
    state = next;
    actions.push(action);
    states.push(state);
  }
  return { state, actions, states };
}

const anyEvents = fc.array(fc.constantFrom(...EVENTS), { maxLength: 30 });

Deno.test("whatever happens, in any order: each state is one of the four, and leaving is for good", () => {
  fc.assert(fc.property(anyEvents, (events) => {
    const { states } = walk(events);
    assert.ok(states.every((state) => STATES.includes(state)));
    const left = states.indexOf("leaving");
    if (left >= 0) assert.ok(states.slice(left).every((state) => state === "leaving"));
  }));
});

Deno.test("while the command runs, only its end leads to leaving without a stop", () => {
  for (const event of EVENTS) {
    const [next] = transition("supervising", event);
    assert.equal(next === "leaving", event === "ended", event);
  }
});

Deno.test("after a stop was asked for, only its end leads to leaving, and nothing is started or adopted any more", () => {
  fc.assert(fc.property(anyEvents, anyEvents, (before, after) => {
    const asked = walk([...before, "stop"]);
    fc.pre(asked.state === "stopping");
    const { state, actions } = walk([...before, "stop", ...after]);
    assert.equal(state, after.includes("stopped") ? "leaving" : "stopping");
    const since = actions.slice(before.length + 1);
    assert.deepEqual(since.filter((action) => action === "start" || action === "adopt" || action === "stop"), []);
  }));
});

Deno.test("the command is started once, the stop stages run once, and both are left once", () => {
  fc.assert(fc.property(anyEvents, (events) => {
    const { actions } = walk(events);
    const count = (...wanted: RunAction[]) => actions.filter((action) => wanted.includes(action)).length;
    assert.ok(count("start", "adopt") <= 1);
    assert.ok(count("stop") <= 1);
    assert.ok(count("leave") <= 1);
  }));
});

Deno.test("a cell that cannot be changes nothing", () => {
  for (const state of STATES) {
    for (const event of EVENTS) {
      const [next, action] = transition(state, event);
      if (action === "impossible" || action === "ignore") assert.equal(next, state, `${state} × ${event}`);
    }
  }
});

Deno.test("a stop is heard in every state in which something can be stopped", () => {
  for (const state of ["preparing", "supervising"] as const) {
    assert.deepEqual(transition(state, "stop"), ["stopping", "stop"]);
  }
});

// ── growing pauses and the restart back-off ──

Deno.test("pauses grow from 5 s, doubling, to 5 min", () => {
  const seconds = Array.from({ length: 10 }, (_, n) => backoffMs(n) / 1000);
  assert.deepEqual(seconds, [5, 10, 20, 40, 80, 160, 300, 300, 300, 300]);
  for (const n of [11, 64, 1100, 1e9, Number.MAX_SAFE_INTEGER]) assert.equal(backoffMs(n), 300_000);
});

const NOW = Date.parse("2026-11-23T03:00:00.000Z");

/** A line of the journal, `ago` seconds before NOW. */
function line(event: string, ago: number, more: Record<string, unknown> = {}): JournalLine {
  const time = new Date(NOW - ago * 1000).toISOString();
  return { time, boot: "b", dir: "/lima/default", role: "run", event, ...more };
}

/** A run that ended badly after `ranS` seconds. */
const bad = (ago: number, ranS = 3, more: Record<string, unknown> = {}) =>
  line("end", ago, { requested: false, status: 1, code: 1, ranS, ...more });
const requested = (ago: number, more: Record<string, unknown> = {}) =>
  line("end", ago, { requested: true, status: 0, ranS: 3, ...more });
/** So many bad ends, the last one just now. */
const badly = (n: number) => Array.from({ length: n }, (_, i) => bad((n - 1 - i) * 10));

interface BackOffRow {
  readonly what: string;
  readonly lines: readonly JournalLine[];
  /** How many seconds of the back-off are left. */
  readonly seconds: number;
}

const BACK_OFFS: readonly BackOffRow[] = [
  { what: "nothing was ever run", lines: [], seconds: 0 },
  { what: "one bad end", lines: badly(1), seconds: 0 },
  { what: "two bad ends in a row", lines: badly(2), seconds: 5 },
  { what: "three", lines: badly(3), seconds: 10 },
  { what: "four", lines: badly(4), seconds: 20 },
  { what: "seven", lines: badly(7), seconds: 160 },
  { what: "eight", lines: badly(8), seconds: 300 },
  { what: "a thousand", lines: badly(1000), seconds: 300 },
  { what: "the time since the last end counts", lines: [bad(20), bad(2)], seconds: 3 },
  { what: "launchd's own 10 s are longer than the first pause", lines: [bad(20), bad(10)], seconds: 0 },
  {
    what: "lines of other events, and of other roles, stand between",
    lines: [
      bad(30),
      line("pre", 25, { steps: [] }),
      line("start", 24, { pid: 4242 }),
      line("running", 23, { seconds: 1 }),
      line("end", 22, { role: "stop", stage: "killed", status: 1 }),
      bad(0),
    ],
    seconds: 5,
  },
  { what: "a requested stop after them", lines: [...badly(5), requested(0)], seconds: 0 },
  { what: "a requested stop that failed", lines: [...badly(5), requested(0, { status: 1 })], seconds: 0 },
  { what: "a requested stop between them", lines: [bad(40), bad(30), requested(20), bad(0)], seconds: 0 },
  { what: "two more after a requested stop", lines: [...badly(5), requested(20), bad(10), bad(0)], seconds: 5 },
  { what: "a run of ten minutes that ended badly", lines: [...badly(5), bad(0, 600)], seconds: 0 },
  { what: "a run of ten minutes that ended well", lines: [...badly(5), bad(0, 601, { status: 0 })], seconds: 0 },
  { what: "a run of almost ten minutes resets nothing", lines: [bad(700), bad(650), bad(0, 599)], seconds: 0 },
  { what: "… and counts for nothing", lines: [bad(20), bad(10, 599), bad(0)], seconds: 5 },
  { what: "ends just inside the first minute", lines: [bad(61, 59.9), bad(0, 59.9)], seconds: 5 },
  { what: "ends just after the first minute", lines: [bad(61, 60.1), bad(0, 60.1)], seconds: 0 },
  {
    what: "ends with status 0, as when limactl finds it running already",
    lines: [bad(20, 1, { status: 0 }), bad(10, 1, { status: 0 }), bad(0, 1, { status: 0 })],
    seconds: 0,
  },
  {
    what: "the command could not be found",
    lines: [bad(10, 0, { status: 127 }), bad(0, 0, { status: 127 })],
    seconds: 5,
  },
  { what: "death by a signal", lines: [bad(10, 1, { status: 137 }), bad(0, 1, { status: 137 })], seconds: 5 },
  { what: "the clock was stepped back by an hour since", lines: [bad(-3590), bad(-3600)], seconds: 5 },
  {
    what: "the clock was stepped back by a year since",
    lines: badly(4).map((l) => ({ ...l, time: "2027-11-23T03:00:00Z" })),
    seconds: 20,
  },
  { what: "the clock was stepped forward by a day since", lines: [bad(86_410), bad(86_400)], seconds: 0 },
];

for (const { what, lines, seconds } of BACK_OFFS) {
  Deno.test(`restart back-off: ${what}: ${seconds} s`, () =>
    assert.equal(restartBackoffMs(lines, NOW), seconds * 1000));
}

const anyLine = fc.record({
  time: fc.oneof(
    fc.constantFrom("", "yesterday", "2026-13-40T99:99:99Z"),
    fc.integer({ min: -1e7, max: 1e7 }).map((s) => new Date(NOW + s * 1000).toISOString()),
  ),
  event: fc.constantFrom("end", "end", "end", "start", "pre"),
  role: fc.constantFrom("run", "run", "stop"),
  requested: fc.constantFrom(true, false, undefined, "yes"),
  status: fc.constantFrom(0, 1, 137, undefined, null, "1"),
  ranS: fc.oneof(fc.constantFrom(undefined, null, "3", -1, 1e300), fc.double({ min: 0, max: 1000, noNaN: true })),
}).map((fields) => ({ ...line("end", 0), ...fields }) as JournalLine);

Deno.test("restart back-off: whatever stands in the journal, it is over after 5 min at most", () => {
  fc.assert(
    fc.property(fc.array(anyLine, { maxLength: 20 }), (lines) => {
      const ms = restartBackoffMs(lines, NOW);
      assert.ok(ms >= 0 && ms <= 300_000, String(ms));
      assert.ok(restartBackoffMs(lines, NOW + 300_000) <= Math.max(0, ms), "it holds longer the longer one waits");
    }),
    { numRuns: 1000 },
  );
});

// ── launchd's word ──

/** As `launchctl print` writes a job that runs. */
const PRINTED = `system/io.lima-vm.daemon.default = {
	active count = 2
	path = /Library/LaunchDaemons/io.lima-vm.daemon.default.plist
	type = LaunchDaemon
	state = running

	program = /usr/local/libexec/lima-guard
	arguments = {
		/usr/local/libexec/lima-guard
		--run
		default
		--
		/opt/homebrew/bin/limactl
		start
		default
		--foreground
	}

	working directory = /Users/ann/.lima/default

	stdout path = launchd.stdout.log
	stderr path = launchd.stderr.log
	default environment = {
		PATH => /usr/bin:/bin:/usr/sbin:/sbin
	}

	environment = {
		OSLogRateLimit => 64
		XPC_SERVICE_NAME => io.lima-vm.daemon.default
	}

	domain = system
	username = ann
	minimum runtime = 10
	exit timeout = 60
	runs = 3
	pid = 4242
	immediate reason = speculative
	forks = 12
	execs = 1
	initialized = 1
	trampolined = 1
	started suspended = 0
	proxy started suspended = 0
	last exit code = 75: EX_TEMPFAIL

	resource coalition = {
		ID = 731
		type = resource
		state = active
		active count = 1
		name = io.lima-vm.daemon.default
	}

	jetsam coalition = {
		ID = 732
		type = jetsam
		state = active
		active count = 1
		name = io.lima-vm.daemon.default
	}

	spawn type = daemon (3)
	jetsam priority = 40
	properties = keepalive | runatload | inferred program
}
`;

const JOB = {
  pid: 4242,
  exitTimeoutS: 60,
  state: "running",
  program: "/usr/local/libexec/lima-guard",
  path: "/Library/LaunchDaemons/io.lima-vm.daemon.default.plist",
};

/** The same job with something else in one place. */
const printed = (from: string | RegExp, to: string) => {
  const text = PRINTED.replace(from, to);
  assert.notEqual(text, PRINTED);
  return text;
};

const NOTHING = { pid: undefined, exitTimeoutS: undefined, state: undefined, program: undefined, path: undefined };

for (
  const [what, text, expected] of [
    ["a job that runs", PRINTED, JOB],
    [
      "a job that does not: no pid",
      printed("\tpid = 4242\n", "").replace("state = running", "state = not running"),
      { exitTimeoutS: 60, state: "not running", program: JOB.program, path: JOB.path },
    ],
    ["only the nested states are there", printed("\tstate = running\n", ""), (({ state: _, ...rest }) => rest)(JOB)],
    ["launchd's own default", printed("exit timeout = 60", "exit timeout = 5"), { ...JOB, exitTimeoutS: 5 }],
    ["without limit", printed("exit timeout = 60", "exit timeout = 0"), { ...JOB, exitTimeoutS: 0 }],
    ["no exit timeout", printed("\texit timeout = 60\n", ""), (({ exitTimeoutS: _, ...rest }) => rest)(JOB)],
    [
      "numbers that are none",
      printed("exit timeout = 60", "exit timeout = forever").replace("pid = 4242", "pid = 0x10"),
      { state: JOB.state, program: JOB.program, path: JOB.path },
    ],
    ["an argument with braces", printed("\t\tdefault\n", "\t\t}\n\t\t{\n"), JOB],
    ["an argument of several lines", printed("\t\tdefault\n", "\t\tone\npid = 1\nexit timeout = 900\n}\n"), JOB],
    ["a value of several lines", printed("OSLogRateLimit => 64", "TEXT => a\n\t\tpid = 1\n}\nstate = x"), JOB],
    [
      "an argument that looks like a line of the job's own",
      printed("\t\tdefault\n", "\t\tone\n\texit timeout = 900\n\tpid = 1\n"),
      JOB,
    ],
    ["a program with blanks and an equals sign", printed("lima-guard\n\targ", "a b = c\n\targ"), {
      ...JOB,
      program: "/usr/local/libexec/a b = c",
    }],
    ["nothing", "", {}],
    ["launchctl's complaint", 'Could not find service "x" in domain for system\n', {}],
    ["another job's name as a value", "system/x = {\n\tpid = 7\n}\n", { pid: 7 }],
  ] as const
) {
  Deno.test(`launchctl print: ${what}`, () => assert.deepEqual(readPrint(text), { ...NOTHING, ...expected }));
}

Deno.test("launchctl print: no text breaks it, and numbers are whole and not negative", () => {
  const words = ["\tpid = ", "\t\t", "\texit timeout = ", "4242", "-5", "1e3", "99999999999", "\n", "}", "{", " ", "x"];
  const text = fc.array(fc.constantFrom(...words), { maxLength: 30 }).map((parts) => parts.join(""));
  fc.assert(fc.property(fc.oneof(text, fc.string({ unit: "binary" })), (text) => {
    const { pid = 0, exitTimeoutS = 0 } = readPrint(text);
    for (const n of [pid, exitTimeoutS]) assert.ok(Number.isSafeInteger(n) && n >= 0);
  }));
});

// ── the plist's word ──

const plist = (keys: string) =>
  `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>io.lima-vm.daemon.default</string>
	${keys}
	<key>RunAtLoad</key>
	<true/>
</dict>
</plist>
`;

for (
  const [what, keys, seconds] of [
    ["none: launchd's default", "", 5],
    ["as install writes it", "<key>ExitTimeOut</key>\n\t<integer>60</integer>", 60],
    ["on one line", "<key>ExitTimeOut</key><integer>45</integer>", 45],
    ["with blanks around", "<key> ExitTimeOut </key> <integer> 45 </integer>", 45],
    ["0, without limit", "<key>ExitTimeOut</key><integer>0</integer>", 0],
    ["negative: launchd ignores it", "<key>ExitTimeOut</key><integer>-5</integer>", 5],
    ["more than 31 bits: launchd ignores it", "<key>ExitTimeOut</key><integer>99999999999</integer>", 5],
    ["a string is no number", "<key>ExitTimeOut</key><string>60</string>", 5],
    ["a comment is no key", "<!-- <key>ExitTimeOut</key><integer>60</integer> -->", 5],
    ["a comment between", "<key>ExitTimeOut</key><!-- was 5 --><integer>60</integer>", 60],
    ["another key", "<key>ThrottleInterval</key><integer>60</integer>", 5],
    ["no plist at all", "bplist00\0", 5],
  ] as const
) {
  Deno.test(`ExitTimeOut of a plist: ${what}: ${seconds}`, () => {
    assert.equal(readJobPlist(plist(keys)).exitTimeoutS, seconds);
  });
}

// ── the budget of a stop ──

for (
  const [what, granted, wanted, budget] of [
    ["not under launchd", undefined, 60, 60],
    ["not under launchd, --timeout shortens it", undefined, 20, 20],
    ["not under launchd, --timeout does not lengthen it", undefined, 300, 60],
    ["launchd's default", 5, 60, 5],
    ["as installed", 60, 60, 60],
    ["--timeout shortens it", 60, 20, 20],
    ["--timeout cannot lengthen it", 10, 20, 10],
    ["without limit: no shutdown grants that", 0, 60, 60],
    ["without limit, --timeout", 0, 20, 20],
  ] as const
) {
  Deno.test(`budget: ${what}: ${budget} s`, () => assert.equal(budgetOf(granted, wanted), budget));
}

Deno.test("budget: never more than launchd grants, never more than --timeout", () => {
  fc.assert(fc.property(fc.integer({ min: 1, max: 4000 }), fc.integer({ min: 1, max: 3600 }), (granted, wanted) => {
    const budget = budgetOf(granted, wanted);
    assert.ok(budget > 0 && budget <= granted && budget <= wanted);
  }));
});

Deno.test("Deno gives a command killed by signal n the code 128 + n, which --run passes on", async () => {
  for (const [signal, status] of [["KILL", 137], ["TERM", 143], ["HUP", 129]] as const) {
    const child = await new Deno.Command("/bin/sh", { args: ["-c", `kill -${signal} $$`], stderr: "null" }).output();
    assert.equal(child.code, status);
  }
});
