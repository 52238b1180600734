/** Text to facts: files and the output of commands, as Lima, macOS and Linux write them, and any other text there is. */

import assert from "node:assert/strict";
import fc from "fast-check";
import {
  isPid,
  nameTrouble,
  readCut,
  readJournal,
  readLimaYaml,
  readLockRecord,
  readLsof,
  readPid,
  readPs,
  readSshPort,
  readVarRun,
} from "../lima_guard.ts";
import type { JournalLine, ProcessRow } from "./facts.ts";
import { DIR } from "./observations.ts";

const RUNS = { numRuns: 2000 };
/** Ordinary objects: fast-check makes some without a prototype, which are not equal to any other. */
const PLAIN = { noNullPrototype: true } as const;
/** Any text at all, and text made of the characters that the readers look for, which comes nearer to their edges. */
const anyText = fc.oneof(
  fc.string({ unit: "binary", maxLength: 300 }),
  fc.string({ unit: fc.constantFrom(..."0123456789 \t\r\n-+.e#:[]{}\"'/apcfnuwPortsh"), maxLength: 300 }),
  fc.array(
    fc.constantFrom(
      ...["ssh:", "  localPort: ", "60022", "additionalDisks:", "[", "]", "- ", "name: ", "\n", "\r\n", "#", "  "],
      ...["paths:", "  varRun: ", "/x", "Port ", " 789   1 501 S Sun Nov 22 23:16:54 2026 x", "p12", "au", "n/x", "{}"],
    ),
    { maxLength: 40 },
  ).map((words) => words.join("")),
);
/** Every PID there may be, the first and last ones often. */
const anyPid = fc.oneof(fc.integer({ min: 2, max: 4_194_304 }), fc.constantFrom(2, 3, 99_998, 4_194_303, 4_194_304));
/** Numbers that kill(2) would take for a group, for all processes, or for another number than the one that was meant. */
const NO_PIDS = [0, -0, 1, -1, -789, 0.5, 789.5, 4_194_305, 2 ** 31, 2 ** 32, 2 ** 32 + 789, 1e21, NaN, Infinity];

// ── PID files ──

const EMPTY = "it is empty";
const NO_NUMBER = "it holds something else than one decimal number";
const LARGER = (digits: string) => `${digits} is larger than any PID`;
for (
  const [text, expected] of [
    ["789\n", 789],
    ["789", 789],
    [" \t789 \r\n", 789],
    ["789\r\n\r\n", 789],
    ["000789\n", 789],
    ["2", 2],
    ["4194304\n", 4_194_304],
    ["", EMPTY],
    [" \r\n\t", EMPTY],
    ["\0\0\0\0", NO_NUMBER],
    ["12x", NO_NUMBER],
    ["-1", NO_NUMBER],
    ["-789\n", NO_NUMBER],
    ["+789", NO_NUMBER],
    ["7 89", NO_NUMBER],
    ["789\n790\n", NO_NUMBER],
    ["0x315", NO_NUMBER],
    ["1e3", NO_NUMBER],
    ["789.0", NO_NUMBER],
    ["٧٨٩", NO_NUMBER],
    ["0", "0 is never a Lima process"],
    ["1\n", "1 is never a Lima process"],
    ["4194305", LARGER("4194305")],
    ["999999999", LARGER("999999999")],
    ["4294967296", LARGER("4294967296")],
    ["99999999999999999999", LARGER("99999999999999999999")],
    [`${"0".repeat(62)}42`, 42],
    [`${"0".repeat(63)}42`, "it is too long"],
    [`42${" ".repeat(63)}`, "it is too long"],
  ] as const
) {
  Deno.test(`readPid() of ${JSON.stringify(text)}`, () => {
    assert.deepEqual(readPid(text), typeof expected === "number" ? { pid: expected } : { not: expected });
  });
}

Deno.test("readPid() of any text is a PID or says why not", () => {
  fc.assert(
    fc.property(fc.oneof(anyText, fc.bigInt().map(String)), (text) => {
      const read = readPid(text);
      if ("not" in read) return assert.notEqual(read.not, "");
      assert.ok(Number.isInteger(read.pid) && read.pid >= 2 && read.pid <= 4_194_304, `${read.pid}`);
      // The same number by another way: nothing is cut off and nothing is added.
      assert.equal(BigInt(text.trim()), BigInt(read.pid));
    }),
    RUNS,
  );
});

Deno.test("readPid() reads every PID, whatever white space is around it", () => {
  const blank = fc.string({ unit: fc.constantFrom(" ", "\t", "\r", "\n"), maxLength: 8 });
  fc.assert(
    fc.property(blank, anyPid, blank, (before, pid, after) => {
      assert.deepEqual(readPid(`${before}${pid}${after}`), { pid });
    }),
    RUNS,
  );
});

for (const pid of NO_PIDS) Deno.test(`isPid() refuses ${pid}`, () => assert.equal(isPid(pid), false));
for (const pid of [2, 789, 99_998, 4_194_304]) Deno.test(`isPid() takes ${pid}`, () => assert.equal(isPid(pid), true));
Deno.test("isPid() takes nothing that 32 bits would change", () => {
  fc.assert(
    fc.property(fc.oneof(fc.double(), fc.maxSafeInteger(), anyPid), (n) => {
      assert.equal(isPid(n), n === (n | 0) && n >= 2 && n <= 4_194_304);
    }),
    RUNS,
  );
});

// ── ps ──

// Column widths as each system prints them: macOS pads the start time to 28 characters, Linux the numbers to 7.
const MACOS = `    1     0     0 Ss   Mon Sep  7 04:02:11 2026     /sbin/launchd
  789     1   501 S    Sun Nov 22 23:16:54 2026     limactl hostagent --pidfile /Users/zoe/.lima/k3s/ha.pid k3s
92811   789   501 U+   Sun Nov  1 00:00:00 2026     /Users/zoe/My Tools/QEMU x
  801     1    -2 Ss   Sun Nov 22 23:16:54 2026     (mDNSResponder)
  802   789   501 Z    Sun Nov 22 23:16:54 2026     <defunct>
`;
const LINUX = `      2       0     0 S    Sun Nov 22 23:16:54 2026 [kthreadd]
   2758       1  1500 Ssl  Sun Nov 22 23:16:54 2026 /usr/local/bin/limactl hostagent --pidfile /home/admin/.lima/real/ha.pid real
   3016    2979  1500 Z    Sun Nov 22 23:19:40 2026 [qemu-system-x86] <defunct>
4194304       1 65534 R+   Sun Nov  2 23:19:40 2026 ends in a blank \n`;
const agentRow = (pid: number, uid: number, stat: string, command: string): ProcessRow => (
  { pid, ppid: 1, uid, stat, started: "Sun Nov 22 23:16:54 2026", command }
);

Deno.test("readPs() of macOS", () => {
  const { rows, unreadable } = readPs(MACOS);
  assert.deepEqual(unreadable, []);
  assert.deepEqual(rows, [
    { pid: 1, ppid: 0, uid: 0, stat: "Ss", started: "Mon Sep  7 04:02:11 2026", command: "/sbin/launchd" },
    agentRow(789, 501, "S", "limactl hostagent --pidfile /Users/zoe/.lima/k3s/ha.pid k3s"),
    {
      ...{ pid: 92811, ppid: 789, uid: 501, stat: "U+", started: "Sun Nov  1 00:00:00 2026" },
      command: "/Users/zoe/My Tools/QEMU x",
    },
    agentRow(801, 4_294_967_294, "Ss", "(mDNSResponder)"),
    { ...agentRow(802, 501, "Z", "<defunct>"), ppid: 789 },
  ]);
});

Deno.test("readPs() of Linux", () => {
  const { rows, unreadable } = readPs(LINUX);
  const zombie = { pid: 3016, ppid: 2979, uid: 1500, stat: "Z", started: "Sun Nov 22 23:19:40 2026" };
  const last = { pid: 4_194_304, ppid: 1, uid: 65534, stat: "R+", started: "Sun Nov  2 23:19:40 2026" };
  assert.deepEqual(unreadable, []);
  assert.deepEqual(rows, [
    { ...agentRow(2, 0, "S", "[kthreadd]"), ppid: 0 },
    agentRow(2758, 1500, "Ssl", "/usr/local/bin/limactl hostagent --pidfile /home/admin/.lima/real/ha.pid real"),
    { ...zombie, command: "[qemu-system-x86] <defunct>" },
    { ...last, command: "ends in a blank " },
  ]);
});

Deno.test("readPs() of no process", () => assert.deepEqual(readPs(""), { rows: [], unreadable: [] }));

Deno.test("readPs() of a process without a command", () => {
  const { rows } = readPs("  789     1   501 S    Sun Nov 22 23:16:54 2026\n");
  assert.deepEqual(rows, [agentRow(789, 501, "S", "")]);
});

// Only a line feed ends a row, whatever else JavaScript takes for the end of a line.
for (const command of ["a\rb", "a\u2028b", "a\u2029", "a\u0085b", "a\fb", "a\0b", "a\tb"]) {
  Deno.test(`readPs() of the command ${JSON.stringify(command)}`, () => {
    const line = `  789     1   501 S    Sun Nov 22 23:16:54 2026     ${command}\n`;
    assert.deepEqual(readPs(line), { rows: [agentRow(789, 501, "S", command)], unreadable: [] });
  });
}

// A row that cannot be understood is kept: the process it stands for is unknown, not gone.
for (
  const line of [
    "  789     1   501 S    Sun Nov 22 23:16:54",
    "  789     1   501 S    So 22 Nov 2026 23:16:54 limactl",
    "  789     1   zoe S    Sun Nov 22 23:16:54 2026 limactl",
    "          1   501 S    Sun Nov 22 23:16:54 2026 limactl",
    "  -1      1   501 S    Sun Nov 22 23:16:54 2026 limactl",
    "99999999999999999999     1   501 S    Sun Nov 22 23:16:54 2026 limactl",
    "  PID  PPID   UID STAT STARTED                      COMMAND",
    "second line of an argument with a line break",
    " ",
  ]
) {
  Deno.test(`readPs() keeps ${JSON.stringify(line)}`, () => {
    const good = "  790     1   501 S    Sun Nov 22 23:16:54 2026 limactl";
    assert.deepEqual(readPs(`${line}\n${good}\n`), { rows: [agentRow(790, 501, "S", "limactl")], unreadable: [line] });
  });
}

Deno.test("readPs() loses no line of any text", () => {
  fc.assert(
    fc.property(anyText, (text) => {
      const { rows, unreadable } = readPs(text);
      assert.equal(rows.length + unreadable.length, text.split("\n").filter((line) => line !== "").length);
      for (const r of rows) assert.ok(Number.isSafeInteger(r.pid) && r.pid >= 0, `${r.pid}`);
    }),
    RUNS,
  );
});

Deno.test("readPs() reads back what either system prints", () => {
  const number = (max: number) => fc.integer({ min: 0, max });
  const two = (n: number) => String(n).padStart(2, "0");
  const started = fc.tuple(number(30), number(23), number(59), number(59))
    .map(([day, h, m, s]) => `Thu Oct ${String(day + 1).padStart(2)} ${two(h)}:${two(m)}:${two(s)} 2026`);
  const printed = fc.record({
    pid: anyPid,
    ppid: number(4_194_304),
    uid: number(4_294_967_295),
    stat: fc.constantFrom("S", "Ss", "R+", "Ssl", "Z", "U", "?Es"),
    started,
    // Leading blanks are padding; a line break is the end of the row.
    command: fc.string({
      unit: fc.oneof(fc.string({ unit: "grapheme", maxLength: 1 }), fc.constantFrom(..." \r\t\u0085\u2028")),
    }).map((text) => text.replaceAll("\n", " ").replace(/^ +/, "")),
  }, PLAIN);
  fc.assert(
    fc.property(fc.array(printed), fc.boolean(), (rows, mac) => {
      const width = mac ? 5 : 7;
      const lines = rows.map(({ pid, ppid, uid, stat, started, command }) => {
        const numbers = [pid, ppid, uid].map((n) => String(n).padStart(width)).join(" ");
        return `${numbers} ${stat.padEnd(4)} ${mac ? started.padEnd(28) : started} ${command}\n`;
      });
      assert.deepEqual(readPs(lines.join("")), { rows, unreadable: [] });
    }),
    RUNS,
  );
});

// ── lsof ──

/** Where lsof knows neither device nor inode. */
const NO_FILE = { dev: undefined, ino: undefined };
const lsof = (...lines: string[]) => lines.map((line) => `${line}\n`).join("");
const VM = "com.apple.Virtualization.VirtualMachine";
for (
  const [name, text, expected] of [
    ["no process", "", []],
    ["a VM that has the disk open for reading and writing", lsof("p901", `c${VM}`, "f14", "au", "n/d/disk"), [
      { pid: 901, command: VM, path: "/d/disk", ...NO_FILE },
    ]],
    ["a writer", lsof("p902", "cqemu-img", "f3", "aw", "n/d/disk"), [
      { pid: 902, command: "qemu-img", path: "/d/disk", ...NO_FILE },
    ]],
    ["a reader, such as a VM that serves a shared folder", lsof("p903", `c${VM}`, "f14", "ar", "n/d/disk"), []],
    ["a file whose access is not known", lsof("p904", "cx", "f14", "a ", "n/d/disk"), []],
    ["a file without a word about its access", lsof("p905", "cx", "f14", "n/d/disk"), []],
    ["the access of one file is not that of the next", lsof("p906", "cx", "f1", "au", "n/d/a", "f2", "n/d/b"), [
      { pid: 906, command: "x", path: "/d/a", ...NO_FILE },
    ]],
    ["the access of one process is not that of the next", lsof("p907", "cx", "f1", "au", "p908", "cy", "n/d/b"), []],
    ["two descriptors of one file", lsof("p909", "cx", "f1", "au", "n/d/disk", "f2", "aw", "n/d/disk"), [
      { pid: 909, command: "x", path: "/d/disk", ...NO_FILE },
    ]],
    // Each disk has a lock of its own, which must stay as long as any process has that disk.
    ["two disks of one VM", lsof("p910", "cx", "f1", "au", "n/d/a/datadisk", "f2", "au", "n/d/b/datadisk"), [
      { pid: 910, command: "x", path: "/d/a/datadisk", ...NO_FILE },
      { pid: 910, command: "x", path: "/d/b/datadisk", ...NO_FILE },
    ]],
    ["two processes", lsof("p911", "cx", "f1", "au", "n/d/a", "p912", "cy", "f1", "au", "n/d/a"), [
      { pid: 911, command: "x", path: "/d/a", ...NO_FILE },
      { pid: 912, command: "y", path: "/d/a", ...NO_FILE },
    ]],
    ["device and inode, before and after the name", lsof("p914", "cx", "f1", "au", "D0xfe01", "i77", "n/d/disk"), [
      { pid: 914, command: "x", path: "/d/disk", dev: 0xfe01, ino: 77 },
    ]],
    [
      "device and inode of one file are not those of the next",
      lsof("p915", "cx", "f1", "au", "D0x1", "i7", "n/a", "f2", "au", "n/b"),
      [
        { pid: 915, command: "x", path: "/a", dev: 1, ino: 7 },
        { pid: 915, command: "x", path: "/b", ...NO_FILE },
      ],
    ],
    ["numbers that are no PIDs", lsof("p1", "f1", "au", "n/d", "p0", "f1", "au", "n/d", "p", "f1", "au", "n/d"), []],
    ["a blank and a line that means nothing", lsof("p913", "cq", "?", "", "f1", "au", "n/My VMs/disk"), [
      { pid: 913, command: "q", path: "/My VMs/disk", ...NO_FILE },
    ]],
  ] as const
) {
  Deno.test(`readLsof(): ${name}`, () => assert.deepEqual(readLsof(text), expected));
}

Deno.test("readLsof() of any text names only PIDs", () => {
  fc.assert(fc.property(anyText, (text) => readLsof(text).forEach((h) => assert.ok(isPid(h.pid), `${h.pid}`))), RUNS);
});

Deno.test("readLsof() finds exactly those who may write", () => {
  const file = fc.record({
    path: fc.constantFrom("/d/disk", "/d/diffdisk", "/x/datadisk"),
    access: fc.constantFrom(..."ruw "),
  });
  const process = fc.record({ pid: anyPid, command: fc.constantFrom("a", VM), files: fc.array(file) });
  fc.assert(
    fc.property(fc.uniqueArray(process, { selector: (p) => p.pid }), (processes) => {
      const text = processes.flatMap((p) => [
        `p${p.pid}`,
        `c${p.command}`,
        ...p.files.flatMap((f, i) => [`f${i}`, `a${f.access}`, `n${f.path}`]),
      ]);
      const expected = processes.flatMap((p) => {
        const open = p.files.filter((f) => f.access === "u" || f.access === "w").map((f) => f.path);
        return [...new Set(open)].map((path) => `${p.pid} ${p.command} ${path}`);
      });
      assert.deepEqual(readLsof(lsof(...text)).map((h) => `${h.pid} ${h.command} ${h.path}`), expected);
    }),
    RUNS,
  );
});

// ── ssh.config ──

/** Recorded with Lima 2.2.0; the port is its last line. */
const SSH_CONFIG = `# This SSH config file can be passed to 'ssh -F'.
# This file is created by Lima, but not used by Lima itself currently.
# Modifications to this file will be lost on restarting the Lima instance.
Host lima-real
  IdentityFile "/home/admin/.lima/_config/user"
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  NoHostAuthenticationForLocalhost yes
  PreferredAuthentications publickey
  Compression no
  BatchMode yes
  IdentitiesOnly yes
  GSSAPIAuthentication no
  Ciphers "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
  User admin
  ControlMaster auto
  ControlPath "/home/admin/.lima/real/ssh.sock"
  ControlPersist yes
  Hostname 127.0.0.1
  Port 38121
`;

for (
  const [name, text, port] of [
    ["what Lima writes", SSH_CONFIG, 38121],
    ["without a line end", SSH_CONFIG.trimEnd(), 38121],
    ["with CRLF", SSH_CONFIG.replaceAll("\n", "\r\n"), 38121],
    ["the first port counts", "  Port 1\n  Port 2\n", 1],
    ["the highest port", "Port 65535", 65535],
    ["an empty file", "", undefined],
    ["cut before the number", SSH_CONFIG.slice(0, SSH_CONFIG.indexOf("38121")), undefined],
    ["port 0", "  Port 0\n", undefined],
    ["too large", "  Port 65536\n", undefined],
    ["not a number", "  Port x\n", undefined],
    ["another word that ends so", "  LocalPort 22\n  Ports 22\n", undefined],
    ["a comment", "# Port 22\n", undefined],
    ["six digits", "  Port 000022\n", undefined],
  ] as const
) {
  Deno.test(`readSshPort(): ${name}`, () => assert.equal(readSshPort(text), port));
}

Deno.test("readSshPort() finds none in a file that was cut anywhere before the number", () => {
  for (let length = 0; length <= SSH_CONFIG.indexOf("38121"); length++) {
    assert.equal(readSshPort(SSH_CONFIG.slice(0, length)), undefined, `cut after ${length} characters`);
  }
});

const anyPort = fc.integer({ min: 1, max: 65535 });
Deno.test("readSshPort() of any text is a port or nothing, and every port is read", () => {
  fc.assert(
    fc.property(anyText, anyPort, (text, port) => {
      const read = readSshPort(text);
      assert.ok(read === undefined || (Number.isInteger(read) && read >= 1 && read <= 65535), `${read}`);
      assert.equal(readSshPort(SSH_CONFIG.replace("38121", String(port))), port);
    }),
    RUNS,
  );
});

// ── YAML, read by patterns ──

for (
  const [name, yaml, port] of [
    ["a plain number", "ssh:\n  localPort: 60022\n", 60022],
    [
      "with comments and blank lines",
      "# x\nssh: # y\n\n  # z\n  forwardAgent: true\n  localPort: 60022 # w\ncpus: 4\n",
      60022,
    ],
    ["with CRLF", "cpus: 4\r\nssh:\r\n  localPort: 60022\r\n", 60022],
    ["as the last line", "ssh:\n  localPort: 22", 22],
    ["0, which means any", "ssh:\n  localPort: 0\n", undefined],
    ["none", "ssh:\n  forwardAgent: true\n", undefined],
    ["of another block", "ssh:\n  forwardAgent: true\nvideo:\n  localPort: 60022\n", undefined],
    ["at the top", "localPort: 60022\n", undefined],
    ["commented out", "ssh:\n  # localPort: 60022\n", undefined],
    ["of a block in a block", "x:\n  ssh:\n    localPort: 60022\n", undefined],
    ["a text", 'ssh:\n  localPort: "sixty"\n', undefined],
    ["an anchor", "ssh:\n  localPort: *port\n", undefined],
    ["too large", "ssh:\n  localPort: 65536\n", undefined],
    ["a number that is followed by a letter", "ssh:\n  localPort: 60022x\n", undefined],
    ["an empty file", "", undefined],
  ] as const
) {
  Deno.test(`readLimaYaml().localPort: ${name}`, () => assert.equal(readLimaYaml(yaml).localPort, port));
}

for (
  const [name, yaml, disks] of [
    ["none", "cpus: 4\n", []],
    ["an empty list", "additionalDisks: []\n", []],
    ["null", "additionalDisks: null\ncpus: 4\n", []],
    ["a list of names", "additionalDisks:\n- data\n- logs\ncpus: 4\n", ["data", "logs"]],
    ["an indented list", "additionalDisks:\n  - \"data\"\n  - 'logs' # both\n", ["data", "logs"]],
    ["a flow list", 'additionalDisks: [data, "logs"] # both\n', ["data", "logs"]],
    ["maps", "additionalDisks:\n- name: data\n  format: true\n- name: logs\n  fsType: ext4\n", ["data", "logs"]],
    ["maps whose name is not first", "additionalDisks:\n- format: false\n  name: data\n", ["data"]],
    ["a flow list of maps", "additionalDisks: [{name: data}, {name: logs, format: false}]\n", ["data", "logs"]],
    ["flow maps in a list", 'additionalDisks:\n- {name: data}\n- {"name": "logs"}\n', ["data", "logs"]],
    ["comments and blank lines", "additionalDisks: # mine\n\n# - name: old\n- name: data # new\n  # x\n", ["data"]],
    ["a comment that looks like a name", "additionalDisks:\n- data # name: old\n", ["data"]],
    ["another list of the same name, deeper", "x:\n  additionalDisks: [data]\n", []],
    ["CRLF", "additionalDisks:\r\n- data\r\n- name: logs\r\nnetworks:\r\n- lima: shared\r\n", ["data", "logs"]],
    ["the next list is another one", "additionalDisks:\n- data\nnetworks:\n- lima: shared\n  name: x\n", ["data"]],
    ["not of another block", "x:\n  additionalDisks:\n  - data\n", []],
    ["no line end", "additionalDisks:\n- data", ["data"]],
  ] as const
) {
  Deno.test(`readLimaYaml().disks: ${name}`, () => assert.deepEqual(readLimaYaml(yaml).disks, disks));
}

// One document in the ways people write it: the right value, or none.
for (
  const [name, yaml, disks] of [
    ["a comment with brackets behind a flow list", "additionalDisks: [data] # not [b]\n", ["data"]],
    ["a list inside a map of a flow list", "additionalDisks: [{name: data, fsArgs: [-i]}]\n", []],
    ["arguments below a disk", "additionalDisks:\n- name: data\n  fsArgs:\n  - -i\n  - size=512\n- logs\n", [
      "data",
      "logs",
    ]],
    ["arguments before the name", "additionalDisks:\n  - fsArgs:\n      - -i\n    name: data\n", ["data"]],
    ["a name below another key", "additionalDisks:\n- format:\n    name: ext4\n  name: data\n", ["data"]],
    ["an anchor and its alias", "additionalDisks:\n- &d data\n- *d\n", []],
    ["an anchor in a flow list", "additionalDisks: [&d data, *d, logs]\n", ["logs"]],
    ["under another key", "other:\n  additionalDisks:\n  - data\n", []],
    ["quoted, with a comment", "additionalDisks:\n- \"data\" # mine\n- name: 'logs'\n", ["data", "logs"]],
  ] as const
) {
  Deno.test(`readLimaYaml().disks, right or none: ${name}`, () => assert.deepEqual(readLimaYaml(yaml).disks, disks));
}
for (
  const [name, yaml, port] of [
    ["another key's block", "ssh:\n  forwards:\n    localPort: 1\n  localPort: 60022\n", 60022],
    ["an anchor", "ssh:\n  localPort: &p 60022\n", undefined],
    ["quoted", 'ssh:\n  localPort: "60022"\n', 60022],
    ["under another key", "other:\n  localPort: 1\nssh:\n  loadDotSSHPubKeys: true\n", undefined],
  ] as const
) {
  Deno.test(`readLimaYaml().localPort, right or none: ${name}`, () => assert.equal(readLimaYaml(yaml).localPort, port));
}
Deno.test("readLimaYaml().sockets: the paths, without their comments", () => {
  const yaml =
    'networks:\n- lima: shared\n- socket: "/run/a b" # mine\n  macAddress: ""\n- macAddress: x\n  socket: /run/c # c\n';
  assert.deepEqual(readLimaYaml(yaml).sockets, ["/run/a b", "/run/c"]);
  assert.deepEqual(readLimaYaml("other:\n- socket: /x\nnetworks:\n- socket: &s /y\n").sockets, []);
});
Deno.test("readVarRun() of another key's block is Lima's default", () => {
  assert.equal(readVarRun("other:\n  varRun: /x\npaths:\n  sudoers: /y\n"), "/private/var/run/lima");
  assert.equal(readVarRun("other:\n  varRun: /x\npaths:\n  varRun: /z\n"), "/z");
});

const VAR_RUN = "/private/var/run/lima";
for (
  const [name, yaml, path] of [
    ["what Lima writes", "paths:\n  socketVMNet: /opt/socket_vmnet\n  varRun: /private/var/run/lima\n", VAR_RUN],
    ["another path", "paths:\n  varRun: /opt/run # ours\n  sudoers: /x\n", "/opt/run"],
    ["quoted, with blanks", 'paths:\n  varRun: "/opt/my run"\n', "/opt/my run"],
    ["with CRLF", "paths:\r\n  varRun: /opt/run\r\n", "/opt/run"],
    ["commented out", "paths:\n#  varRun: /opt/run\n", VAR_RUN],
    ["a relative path", "paths:\n  varRun: run\n", VAR_RUN],
    ["empty", "paths:\n  varRun:\n  sudoers: /x\n", VAR_RUN],
    ["an empty file", "", VAR_RUN],
  ] as const
) {
  Deno.test(`readVarRun(): ${name}`, () => assert.equal(readVarRun(yaml), path));
}

Deno.test("any text may stand in lima.yaml and networks.yaml", () => {
  fc.assert(
    fc.property(anyText, (text) => {
      const port = readLimaYaml(text).localPort;
      assert.ok(port === undefined || (Number.isInteger(port) && port >= 1 && port <= 65535), `${port}`);
      assert.ok(readLimaYaml(text).disks.every((name) => typeof name === "string" && name !== ""));
      assert.match(readVarRun(text), /^\//);
    }),
    RUNS,
  );
});

// A pattern that goes back and forth over its own blanks would need years for these.
for (const [what, tail] of [["blanks", " ".repeat(50_000)], ["items", "- \n".repeat(20_000)]] as const) {
  Deno.test(`50 000 ${what} in lima.yaml are read in no time`, () => {
    const began = performance.now();
    readLimaYaml(`ssh:\n${tail}x`).localPort;
    readLimaYaml(`additionalDisks:\n${tail}x`).disks;
    readVarRun(`paths:\n  varRun:${tail}x`);
    readSshPort(`Port 1${tail}x`);
    assert.ok(performance.now() - began < 5_000);
  });
}

Deno.test("names, ports and paths are read back from YAML", () => {
  const names = fc.uniqueArray(fc.stringMatching(/^[a-z][a-z0-9]{0,7}$/), { maxLength: 5 });
  const quoted = fc.constantFrom((t: string) => t, (t: string) => `"${t}"`, (t: string) => `'${t}'`);
  const item = fc.constantFrom(
    (t: string) => `- ${t}\n`,
    (t: string) => `- name: ${t}\n  format: true\n`,
    (t: string) => `  - name: ${t} # disk\n`,
  );
  fc.assert(
    fc.property(
      names,
      quoted,
      item,
      anyPort,
      fc.stringMatching(/^(\/[a-z0-9._-]{1,8}){1,4}$/),
      (names, q, i, port, path) => {
        const disks = `additionalDisks:\n${names.map((name) => i(q(name))).join("")}`;
        assert.deepEqual(readLimaYaml(`cpus: 4\n${disks}memory: 4GiB\n`).disks, names);
        assert.equal(readLimaYaml(`${disks}ssh:\n  localPort: ${port}\nmemory: 4GiB\n`).localPort, port);
        assert.equal(readVarRun(`paths:\n  varRun: ${q(path)}\n`), path);
      },
    ),
    RUNS,
  );
});

// ── the lock's record ──

const RECORD: NonNullable<ReturnType<typeof readLockRecord>> = {
  pid: 789,
  started: "",
  dir: DIR,
  role: "stop",
  phase: "stopping",
};
const line = (value: unknown) => `${JSON.stringify(value)}\n`;
for (
  const [name, text, expected] of [
    ["what lima-guard writes", line(RECORD), RECORD],
    ["without a line end", JSON.stringify(RECORD), RECORD],
    ["with a start time and more", line({ ...RECORD, started: "Sun Nov 22 23:16:54 2026", version: 2 }), {
      ...RECORD,
      started: "Sun Nov 22 23:16:54 2026",
    }],
    ["what an older and longer record left behind it", `${line(RECORD)}"phase":"working"}\n`, RECORD],
    ["an empty file", "", undefined],
    ["not JSON", "789\n", undefined],
    ["null", "null\n", undefined],
    ["a list", line([RECORD]), undefined],
    ["of another directory", line({ ...RECORD, dir: `${DIR}-2` }), undefined],
    ["a PID as text", line({ ...RECORD, pid: "789" }), undefined],
    ["a phase that is none", line({ ...RECORD, phase: 1 }), undefined],
    ["no role", line({ ...RECORD, role: undefined }), undefined],
    ["no start time", line({ ...RECORD, started: undefined }), undefined],
  ] as const
) {
  Deno.test(`readLockRecord(): ${name}`, () => assert.deepEqual(readLockRecord(text, DIR), expected));
}
for (const pid of NO_PIDS) {
  Deno.test(`readLockRecord() refuses ${pid} as PID`, () => {
    assert.equal(readLockRecord(line({ ...RECORD, pid }), DIR), undefined);
  });
}

const word = fc.string({ unit: "grapheme" });
const record = fc.record({ pid: anyPid, started: word, dir: fc.constant(DIR), role: word, phase: word }, PLAIN);
Deno.test("readLockRecord() reads back every record, and none that is cut short", () => {
  fc.assert(
    fc.property(record, fc.nat(), (r, cut) => {
      const text = line(r);
      assert.deepEqual(readLockRecord(text, DIR), r);
      assert.equal(readLockRecord(text.slice(0, cut % (text.length - 1)), DIR), undefined);
    }),
    RUNS,
  );
});

Deno.test("readLockRecord() of any text and any JSON is a record or nothing", () => {
  fc.assert(
    fc.property(fc.oneof(anyText, fc.json()), (text) => {
      const read = readLockRecord(text, DIR);
      assert.ok(read === undefined || (isPid(read.pid) && read.dir === DIR));
    }),
    RUNS,
  );
});

// ── the journal ──

const ENTRY: JournalLine = { time: "2026-11-22T23:16:54.000Z", boot: "B", dir: DIR, role: "stop", event: "end" };
for (
  const [name, text, expected] of [
    ["nothing", "", []],
    ["a line, with what it tells beyond", line({ ...ENTRY, status: 0 }), [{ ...ENTRY, status: 0 }]],
    ["a torn line, and a good one after it", `${line(ENTRY)}{"time":"2026-1\n${line(ENTRY)}`, [ENTRY, ENTRY]],
    ["a torn line at the end", `${line(ENTRY)}{"time`, [ENTRY]],
    ["lines that came along with a clone", line({ ...ENTRY, dir: `${DIR}-2` }) + line(ENTRY), [ENTRY]],
    ["lines that are no objects", 'null\n[]\n1\n"x"\n', []],
    ["no time", line({ ...ENTRY, time: undefined }), []],
    ["a boot that is a number", line({ ...ENTRY, boot: 1 }), []],
    ["no role", line({ ...ENTRY, role: undefined }), []],
    ["no event", line({ ...ENTRY, event: null }), []],
  ] as const
) {
  Deno.test(`readJournal(): ${name}`, () => assert.deepEqual(readJournal(text, DIR), expected));
}

Deno.test("readJournal() reads every good line back, in order, whatever stands between them", () => {
  const entry = fc.record(
    { time: word, boot: word, dir: fc.constantFrom(DIR, "/elsewhere"), role: word, event: word },
    PLAIN,
  );
  const torn = fc.tuple(entry, fc.nat()).map(([e, cut]) => JSON.stringify(e).slice(0, cut % JSON.stringify(e).length));
  fc.assert(
    fc.property(fc.array(fc.oneof(entry, torn)), (things) => {
      const text = things.map((t) => `${typeof t === "string" ? t : JSON.stringify(t)}\n`).join("");
      assert.deepEqual(readJournal(text, DIR), things.filter((t) => typeof t !== "string" && t.dir === DIR));
    }),
    RUNS,
  );
});

Deno.test("readJournal() of any text holds only lines of this directory", () => {
  fc.assert(fc.property(anyText, (text) => assert.ok(readJournal(text, DIR).every((l) => l.dir === DIR))), RUNS);
});

// ── instance names ──

const CHARACTERS = "Lima allows letters and digits, joined by single `.`, `_` or `-`";
const IS_FILE = "Lima takes a name that ends in .yml or .yaml for a file";
for (const name of ["default", "k3s", "k3s-2", "a.b_c-d", "42", "1e3", "true", "Z", "x.yaml.x", "x".repeat(76)]) {
  Deno.test(`nameTrouble() takes ${name}`, () => assert.equal(nameTrouble(name), undefined));
}
for (
  const [name, why] of [
    ["", "it is empty"],
    ["x".repeat(77), "it has 77 characters, Lima allows 76"],
    ...[
      ".",
      "..",
      "_config",
      ".hidden",
      "a/b",
      "/",
      "../k3s",
      "-x",
      "x-",
      "a--b",
      "a._b",
      "a b",
      " a",
      "a\n",
      "zoë",
      "a\0",
    ]
      .map((name) => [name, CHARACTERS]),
    ...["k3s.yaml", "k3s.yml", "k3s.YAML", "k3s.yMl"].map((name) => [name, IS_FILE]),
  ] as [string, string][]
) {
  Deno.test(`nameTrouble() refuses ${JSON.stringify(name)}`, () => assert.equal(nameTrouble(name), why));
}

Deno.test("nameTrouble() follows Lima's rule", () => {
  const near = fc.string({ unit: fc.constantFrom(..."aZ09._-/ é"), maxLength: 90 });
  const suffixed = fc.tuple(near, fc.constantFrom(".yml", ".yaml", ".YML", "yml", ".ym")).map((parts) =>
    parts.join("")
  );
  fc.assert(
    fc.property(fc.oneof(near, suffixed, word), (name) => {
      // Lima's rule without a regular expression: words of letters and digits with one joint between two of them.
      const isWord = (c: string) => "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789".includes(c);
      const fits = [...name].every((c, i, all) =>
        isWord(c) || ("._-".includes(c) && [all[i - 1], all[i + 1]].every((n) => n !== undefined && isWord(n)))
      );
      const isFile = [".yml", ".yaml"].some((suffix) => name.toLowerCase().endsWith(suffix));
      assert.equal(nameTrouble(name) === undefined, fits && !isFile && name.length >= 1 && name.length <= 76);
    }),
    RUNS,
  );
});

// ── what a host agent wrote in its last stop ──

const event = (level: string, msg: string) => JSON.stringify({ level, msg, time: "2026-11-26T20:00:00Z" });
const ASKED = event("info", "Received SIGTERM, shutting down the host agent");
const CANNOT = event("fatal", "vz: CanRequestStop is not supported");
const FORCED = event("info", "QEMU did not exit in 3m0s, forcibly killing QEMU");
const NO_SOCKET = event("warning", "failed to open the QMP socket `/x/qmp.sock`, forcibly killing QEMU");
const FORWARDER = event("error", "failed to close the port forwarder");
const CLOSED = "Connection to 127.0.0.1 closed by remote host.";

for (
  const [name, lines, isCut] of [
    ["it could not request the stop", [ASKED, CANNOT], true],
    ["a raw line of a child behind it", [ASKED, CANNOT, CLOSED], true],
    ["an error of the port forwarder behind it", [ASKED, CANNOT, FORWARDER], true],
    ["QEMU was killed", [ASKED, FORCED, event("info", "QEMU has exited, after killing forcibly")], true],
    ["QEMU was killed, and its status is fatal", [ASKED, FORCED, event("fatal", "signal: killed")], true],
    ["Go's panic", [ASKED, "panic: no such thing", "", "goroutine 1 [running]:"], true],
    ["Go's fatal error", [ASKED, "fatal error: concurrent map writes", "", "goroutine 51 [running]:"], true],
    ["a signal that Go dies of", [ASKED, "SIGSEGV: segmentation violation", "PC=0x1 m=0 sigcode=1"], true],
    ["an error of each of many port forwarders before it", [ASKED, ...Array(50).fill(FORWARDER), CANNOT], true],
    ["a warning: it stops the guest over ssh", [ASKED, event("warning", "vz: CanRequestStop is not supported")], false],
    ["an earlier stop, and a clean one behind it", [ASKED, CANNOT, ASKED, FORWARDER], false],
    ["QEMU was killed, since its socket was gone", [
      ASKED,
      NO_SOCKET,
      event("info", "QEMU has exited, after killing forcibly"),
    ], true],
    // As a real Lima 2.2.0 wrote it at the end of a stop by lima-guard.
    ["QEMU had gone by itself, and its socket with it", [
      event("info", "Driver stopped due to error: %!q(<nil>)"),
      event("info", "Shutting down the host agent"),
      event("info", "Shutting down QEMU with the power button"),
      NO_SOCKET,
      event("info", "QEMU has already exited"),
    ], false],
    ["QEMU had gone by itself", [ASKED, event("info", "QEMU has already exited")], false],
    ["nothing at all", [], false],
  ] as const
) {
  Deno.test(`readCut() ${isCut ? "a cut" : "no cut"}: ${name}`, () => {
    assert.equal(readCut(lines.join("\n")) !== undefined, isCut);
    const foreign = fc.array(fc.constantFrom(CLOSED, "", "{", "x".repeat(300)), { maxLength: 60 });
    fc.assert(fc.property(foreign, (more) => {
      assert.equal(readCut([...lines, ...more].join("\n")), readCut(lines.join("\n")));
    }));
  });
}

const PANIC = [ASKED, "panic: no such thing", "", "goroutine 1 [running]:"];
const ended = (time: string) =>
  `{"time":"${time}","status":{"running":true}}\n{"time":"${time}","status":{"exiting":true}}`;
for (
  const [name, lines, events, driver, isCut] of [
    ["a child's panic: the agent came to its own end", PANIC, ended("2026-11-26T20:00:01Z"), undefined, false],
    ["its own panic, where QEMU outlived it", PANIC, "", "QEMU", false],
    ["krunkit needed 29 s", [ASKED], ended("2026-11-26T20:00:29Z"), "krunkit", false],
    ["krunkit did not end within 30 s", [ASKED], ended("2026-11-26T20:00:30.1Z"), "krunkit", true],
    ["an external driver needed 30 s", [ASKED], ended("2026-11-26T20:00:30.1Z"), "external driver", false],
  ] as const
) {
  Deno.test(`readCut() with the events, ${isCut ? "a cut" : "no cut"}: ${name}`, () => {
    assert.equal(readCut(lines.join("\n"), events, driver) !== undefined, isCut);
  });
}

Deno.test("readLimaYaml().disks takes no half of a quoted name with a comma", () => {
  assert.deepEqual(readLimaYaml('additionalDisks: ["da,ta", b]\n').disks, ["b"]);
});
