/**
 * What holds of every reader of text, whatever the text: any bytes at all are survived, no number that is no PID comes
 * out as one, a damaged line loses only itself, and what launchctl, ps, lsof and plists say is read back from facts that
 * were made up first. The readers' own tables are in reading_test.ts, run_table_test.ts and install_text_test.ts.
 */

import assert from "node:assert/strict";
import fc from "fast-check";
import { build, parse } from "npm:plist@5.0.0";
import {
  lastStop,
  main,
  readCut,
  readJobPlist,
  readJournal,
  readLimaYaml,
  readLockRecord,
  readLsof,
  readPid,
  readPrint,
  readPs,
  readSshPort,
  readVarRun,
  realHost,
  restartBackoffMs,
} from "../lima_guard.ts";
import type { ProcessRow } from "./facts.ts";
import {
  decodePlist,
  isEqual,
  type PlistReader,
  readDisabled,
  readLoaded,
  readPlist as readPlistWith,
  readUser,
  Refusal,
} from "../install.ts";
import { DIR } from "./observations.ts";
import { tempLimaHome } from "./helpers/mod.ts";

const readPlist = (text: string) => readPlistWith(text, parse as PlistReader);
const RUNS = { numRuns: 1000 };
const PLAIN = { noNullPrototype: true } as const;
const LOWEST = 2;
const HIGHEST = 4_194_304;
const anyPid = fc.integer({ min: LOWEST, max: HIGHEST });

// ── any bytes ──

/** True texts, of which some bytes are then changed. */
const TRUE_TEXTS = [
  "789\n",
  "  789     1   501 S    Sun Nov 22 23:16:54 2026     limactl hostagent --pidfile /d/ha.pid k3s\n",
  "p789\ncqemu\nf3\nau\nn/d/disk\n",
  "\tstate = running\n\tprogram = /g\n\targuments = {\n\t\t/g\n\t}\n\texit timeout = 60\n\tpid = 789\n",
  "Host lima-k3s\n  Port 60022\n",
  'ssh:\n  localPort: 60022\nadditionalDisks:\n- name: data\n- "logs"\npaths:\n  varRun: /x\n',
  `{"time":"2026-11-22T23:16:54.000Z","boot":"B","dir":"${DIR}","role":"run","event":"end","status":1,"ranS":3}\n`,
  `{"pid":789,"started":"","dir":"${DIR}","role":"stop","phase":"stopping"}\n`,
  "<plist><dict><key>ExitTimeOut</key><integer>60</integer><key>ProgramArguments</key><array><string>a</string></array>" +
  "</dict></plist>",
  "zoe:*:501:20::0:0:Zoe:/Users/zoe:/bin/zsh\n",
];
const damaged = fc.tuple(
  fc.constantFrom(...TRUE_TEXTS),
  fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }),
  fc.integer({ min: 1, max: 4 }),
).map(([text, changes, times]) => {
  const bytes = new TextEncoder().encode(text.repeat(times));
  for (const [at, byte] of changes) bytes[at % bytes.length] = byte;
  return bytes;
});
/** Whole texts with other numbers in them: just beyond what a PID, a port or 32 bits can be, and any at all. */
const anyNumber = fc.oneof(
  fc.constantFrom("0", "1", "-1", "65535", "65536", "99999", "4194304", "4194305", "4294967297", "1e3", "0x10"),
  fc.bigInt().map(String),
);
const renumbered = fc.tuple(fc.constantFrom(...TRUE_TEXTS), anyNumber)
  .map(([text, n]) => new TextEncoder().encode(text.replaceAll(/\b(789|60022|60|501)\b/g, n)));
const anyBytes = fc.oneof(fc.uint8Array({ maxLength: 200 }), damaged, renumbered);

function assertPid(pid: number): void {
  assert.ok(Number.isInteger(pid) && pid >= LOWEST && pid <= HIGHEST, `${pid} is no PID`);
}

Deno.test("no reader throws on any bytes, and what is called a PID may be one", () => {
  fc.assert(
    fc.property(anyBytes, (bytes) => {
      const text = new TextDecoder().decode(bytes);
      const pid = readPid(text);
      if ("pid" in pid) assertPid(pid.pid);
      readLsof(text).forEach((holder) => assertPid(holder.pid));
      const record = readLockRecord(text, DIR);
      if (record) assertPid(record.pid);
      // Rows of ps are other people's too, launchd's 1 and the kernel's 0 among them.
      for (const row of readPs(text).rows) {
        for (const n of [row.pid, row.ppid, row.uid]) assert.ok(Number.isInteger(n) && n >= 0, `${n}`);
      }
      for (const port of [readSshPort(text), readLimaYaml(text).localPort]) {
        assert.ok(port === undefined || (Number.isInteger(port) && port > 0 && port < 65536));
      }
      for (const name of readLimaYaml(text).disks) assert.notEqual(name, "");
      assert.ok(readVarRun(text).startsWith("/"));
      const { exitTimeoutS = 0 } = readPrint(text);
      for (const s of [exitTimeoutS, readJobPlist(text).exitTimeoutS]) assert.ok(Number.isInteger(s) && s >= 0, `${s}`);
      readCut(text);
      readDisabled(text, "io.lima-vm.daemon.k3s");
      const user = readUser(text);
      if (user) assert.ok(Number.isInteger(user.uid) && user.home.startsWith("/"));
      const answer = { argv: ["launchctl"], code: 0, stdout: text, stderr: "", late: false };
      assert.ok(["loaded", "unknown"].includes(readLoaded(answer).kind));
    }),
    { numRuns: 5000 },
  );
});

Deno.test("no journal makes the verdict on the last stop or the restart back-off fail", () => {
  const value = fc.oneof(fc.jsonValue(), fc.constantFrom<unknown>(1, "guest", { total: 1 }, { total: "x" }, null));
  const line = fc.record({
    time: fc.oneof(fc.string(), fc.constant("2026-11-22T23:16:54.000Z")),
    boot: fc.constantFrom("A", "B"),
    dir: fc.constant(DIR),
    role: fc.constantFrom("run", "stop"),
    event: fc.constantFrom("start", "end", "running", "pre"),
    stage: value,
    seconds: value,
    status: value,
    signal: value,
    ranS: value,
    requested: value,
    cut: value,
  }, PLAIN).map((o) => `${JSON.stringify(o)}\n`);
  fc.assert(
    fc.property(fc.array(line, { maxLength: 8 }), fc.boolean(), (lines, alive) => {
      const read = readJournal(lines.join(""), DIR);
      assert.equal(read.length, lines.length);
      assert.notEqual(lastStop(read, "B", alive).lastStop, "");
      const ms = restartBackoffMs(read, Date.parse("2026-11-22T23:17:00.000Z"));
      assert.ok(ms >= 0 && ms <= 300_000, `${ms} ms`);
    }),
    RUNS,
  );
});

Deno.test("any bytes in the place of a plist are refused or read, never a crash", () => {
  fc.assert(
    fc.property(anyBytes, (bytes) => {
      try {
        readPlist(decodePlist(bytes, "/x.plist"));
      } catch (error) {
        assert.ok(error instanceof Refusal, String(error));
      }
    }),
    RUNS,
  );
});

// ── damaged lines ──

const number = (max: number) => fc.integer({ min: 0, max });
const two = (n: number) => String(n).padStart(2, "0");
const row = fc.record({
  pid: anyPid,
  ppid: number(HIGHEST),
  uid: number(4_294_967_295),
  stat: fc.constantFrom("S", "Ss", "R+", "Z", "U"),
  started: fc.tuple(number(30), number(23), number(59)).map(([d, h, m]) =>
    `Thu Oct ${String(d + 1).padStart(2)} ${two(h)}:${two(m)}:00 2026`
  ),
  command: fc.constantFrom("/sbin/launchd", "limactl hostagent --pidfile /d/ha.pid k3s", "a 1 2 3"),
}, PLAIN);
const psLine = ({ pid, ppid, uid, stat, started, command }: ProcessRow) =>
  `${String(pid).padStart(7)} ${ppid} ${uid} ${stat.padEnd(4)} ${started} ${command}`;
/** A row that ends before its start time does: what it would have said cannot be known. */
const cutRow = fc.tuple(row, fc.nat()).map(([r, cut]) => {
  const line = psLine(r);
  return line.slice(0, 1 + cut % (line.indexOf(r.started) + r.started.length - 2));
});

Deno.test("readPs(): a damaged row is kept as one and loses only itself", () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(row, cutRow)), (things) => {
      const text = things.map((t) => `${typeof t === "string" ? t : psLine(t)}\n`).join("");
      const rows = things.filter((t) => typeof t !== "string");
      const unreadable = things.filter((t) => typeof t === "string");
      assert.deepEqual(readPs(text), { rows, unreadable });
    }),
    RUNS,
  );
});

Deno.test("readLsof(): lines that mean nothing change nothing", () => {
  const holder = fc.record({
    pid: anyPid,
    command: fc.constantFrom("qemu", "x"),
    path: fc.constantFrom("/d/a", "/d/b"),
  });
  const junk = fc.tuple(fc.constantFrom(..."tosGkKl?#"), fc.string({ maxLength: 9 }))
    .map(([first, rest]) => first + rest.replaceAll("\n", " "));
  fc.assert(
    fc.property(
      fc.uniqueArray(holder, { selector: (h) => h.pid }),
      fc.infiniteStream(fc.option(junk)),
      (holders, noise) => {
        const lines = holders.flatMap(({ pid, command, path }) => [`p${pid}`, `c${command}`, "f3", "au", `n${path}`]);
        const text = lines.flatMap((line) => [line, noise.next().value ?? ""]).map((line) => `${line}\n`).join("");
        assert.deepEqual(readLsof(text), holders.map((h) => ({ ...h, dev: undefined, ino: undefined })));
      },
    ),
    RUNS,
  );
});

Deno.test("readLsof(): a holder whose number is damaged is left out, and takes no other holder's file", () => {
  const bad = fc.constantFrom("", "0", "1", "-7", "x", "12x", "4194305", "4294967296", "1e99", "0.5");
  fc.assert(
    fc.property(anyPid, bad, (pid, wrong) => {
      const text = `p${pid}\nf1\nau\nn/d/a\np${wrong}\nf1\nau\nn/d/b\n`;
      assert.deepEqual(readLsof(text).map((h) => [h.pid, h.path]), [[pid, "/d/a"]]);
    }),
    RUNS,
  );
});

// ── launchctl ──

const value = fc.string({ unit: fc.constantFrom(..."abz09 /.-_={}>()é"), minLength: 1, maxLength: 20 })
  .map((text) => text.trim()).filter((text) => text !== "");
const variable = fc.string({ unit: fc.constantFrom(..."abzAZ09_"), minLength: 1, maxLength: 8 });
const job = fc.record({
  path: value,
  state: fc.constantFrom("running", "not running", "SIGTERMed", "SIGKILLed", "spawn scheduled"),
  program: value,
  args: fc.array(value, { minLength: 1, maxLength: 6 }),
  inherited: fc.array(fc.tuple(variable, value), { maxLength: 3 }),
  environment: fc.array(fc.tuple(variable, value), { maxLength: 3 }),
  pid: fc.option(anyPid),
  exitTimeout: fc.option(number(86_400)),
  lastExit: fc.option(number(255)),
}, PLAIN);

Deno.test("launchctl print: what a job is, is read back from what is printed", () => {
  fc.assert(
    fc.property(job, ({ path, state, program, args, inherited, environment, pid, exitTimeout, lastExit }) => {
      const text = [
        "gui/501/io.lima-vm.autostart.k3s = {",
        "\tactive count = 1",
        `\tpath = ${path}`,
        `\tstate = ${state}`,
        "",
        `\tprogram = ${program}`,
        "\targuments = {",
        ...args.map((arg) => `\t\t${arg}`),
        "\t}",
        "\tinherited environment = {",
        ...inherited.map(([key, value]) => `\t\t${key} => ${value}`),
        "\t}",
        "",
        "\tenvironment = {",
        ...environment.map(([key, value]) => `\t\t${key} => ${value}`),
        "\t}",
        ...exitTimeout === null ? [] : [`\texit timeout = ${exitTimeout}`],
        ...pid === null ? [] : [`\tpid = ${pid}`],
        `\tlast exit code = ${lastExit === 78 ? "78: EX_CONFIG" : lastExit ?? "(never exited)"}`,
        "\tjetsam coalition = {",
        "\t\tstate = active",
        "\t\tpid = 1",
        "\t}",
        "}",
        "",
      ].join("\n");
      const numbers = { pid: pid ?? undefined, exitTimeoutS: exitTimeout ?? undefined };
      assert.deepEqual(readPrint(text), { ...numbers, state, program, path });
      const answer = { argv: ["launchctl"], code: 0, stdout: text, stderr: "", late: false };
      const isEnding = state === "SIGTERMed" || state === "SIGKILLed";
      assert.deepEqual(readLoaded(answer), {
        kind: "loaded",
        args,
        environment: Object.fromEntries([...inherited, ...environment]),
        inherited: Object.fromEntries(inherited),
        userName: undefined,
        isEnding,
        path,
        pid: pid ?? undefined,
        exitTimeoutS: exitTimeout ?? undefined,
        lastExit: lastExit ?? undefined,
        startsByItself: false,
      });
      // Cut in the middle of its arguments, the answer says so.
      const half = text.slice(0, text.indexOf("\targuments = {") + 15);
      assert.equal(readLoaded({ ...answer, stdout: half }).kind, "unknown");
    }),
    RUNS,
  );
});

Deno.test("launchctl print-disabled: each label has its own word", () => {
  const label = fc.stringMatching(/^io\.lima-vm\.(daemon|autostart)\.[a-z0-9-]{1,8}$/);
  const word = fc.constantFrom("enabled", "disabled", "true", "false");
  fc.assert(
    fc.property(fc.uniqueArray(fc.tuple(label, word), { selector: ([l]) => l }), label, (all, other) => {
      const text = `disabled services = {\n${all.map(([l, w]) => `\t\t"${l}" => ${w}\n`).join("")}\t}\n`;
      for (const [l, w] of all) assert.equal(readDisabled(text, l), w === "disabled" || w === "true", l);
      if (!all.some(([l]) => l === other)) assert.equal(readDisabled(text, other), undefined);
    }),
    RUNS,
  );
});

Deno.test("id -P: a user is read back, and a line with too few fields is no user", () => {
  const field = fc.string({ unit: fc.constantFrom(..."abc 019_-é"), minLength: 1, maxLength: 8 }).map((t) => `u${t}u`);
  const id = number(4_294_967_295);
  fc.assert(
    fc.property(field, id, id, field, fc.integer({ min: 0, max: 6 }), (name, uid, gid, gecos, cut) => {
      const line = [name, "********", uid, gid, "", 0, 0, gecos, `/Users/${name}`, "/bin/zsh"].join(":");
      assert.deepEqual(readUser(`${line}\n`), { name, uid, gid, home: `/Users/${name}` });
      assert.equal(readUser(line.split(":").slice(0, cut).join(":")), undefined);
    }),
    RUNS,
  );
});

// ── plists, as the package writes them ──

const text = fc.string({ unit: fc.constantFrom(..."abXZ09 ./-_&<>\"'=é漢🦙"), maxLength: 16 });
const leaf = fc.oneof(text, fc.integer({ min: -1e6, max: 1e6 }), fc.boolean());
const entries = fc.dictionary(fc.string({ unit: fc.constantFrom(..."abcXYZ&<é "), minLength: 1, maxLength: 8 }), leaf, {
  maxKeys: 4,
  ...PLAIN,
});

Deno.test("a plist that a package wrote is read back, by install.ts and by --status", () => {
  const dict = fc.record(
    { args: fc.array(text, { maxLength: 6 }), exitTimeOut: fc.option(number(86_400)), entries },
    PLAIN,
  );
  fc.assert(
    fc.property(dict, ({ args, exitTimeOut, entries }) => {
      const value = {
        Label: "io.lima-vm.daemon.k3s",
        ProgramArguments: args,
        ...exitTimeOut === null ? {} : { ExitTimeOut: exitTimeOut },
        EnvironmentVariables: entries,
      };
      const xml = build(value);
      assert.ok(isEqual(readPlist(xml).value, value), xml);
      const job = readJobPlist(xml);
      assert.equal(job.exitTimeoutS, exitTimeOut ?? 5);
      // By pattern, and for show only: an empty string is written as <string/>.
      if (args.every((arg) => arg !== "")) assert.deepEqual(job.command, args);
    }),
    RUNS,
  );
});

Deno.test("a plist that was cut anywhere is refused", () => {
  const xml = build({ Label: "x", ProgramArguments: ["a", "b"], ExitTimeOut: 60 });
  const end = xml.indexOf("</plist>") + "</plist>".length;
  for (let length = 0; length < end; length++) {
    assert.throws(() => readPlist(xml.slice(0, length)), Refusal, `${length}`);
  }
});

// ── ssh.config: whose it is ──

Deno.test("the guest is only asked through an ssh.config that names this instance", async () => {
  await using home = await tempLimaHome();
  const instance = home.instance("a.b_c");
  // A process may live: that is when ssh is on its way before anything is proven.
  instance.pidFile("ha.pid", Deno.pid);
  const real = realHost();
  let asked = 0;
  const nothing = { trouble: "other", why: "not in this test" } as const;
  const host = {
    ...real,
    start: () => (asked++, nothing),
    run: () => Promise.resolve(nothing),
    connect: () => Promise.resolve(nothing),
    signal: () => nothing,
    pause: () => new Promise<never>(() => {}),
    onSignal: () => {},
    stdout: () => undefined,
    stderr: () => {},
  };
  const piece = fc.constantFrom(
    ...[
      "Host lima-a-b-c",
      "Host lima-a-b-c ",
      " Host lima-a-b-c",
      "Host lima-a-b-c2",
      "Host lima-a.b_c",
      "# Host lima-a-b-c",
    ],
    ...["Host lima-a-b-c x", "HostName lima-a-b-c", "Host *", "  Port 60022", "", "host lima-a-b-c"],
  );
  const end = fc.constantFrom("\n", "\r\n");
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { maxLength: 6 }), end, async (lines, end) => {
      instance.write("ssh.config", lines.join(end));
      asked = 0;
      await main(["--stop", "a.b_c", "--timeout", "1", "--lima-home", home.lima], host);
      assert.equal(asked > 0, lines.includes("Host lima-a-b-c"), JSON.stringify(lines));
    }),
    { numRuns: 200 },
  );
});
