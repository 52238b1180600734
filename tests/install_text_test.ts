/** The text of a plist: what is read in it, what is refused, what is changed in it, and that every byte comes back. */

import assert from "node:assert/strict";
import fc from "fast-check";
import { parse } from "npm:plist@5.0.0";
import {
  compareVersions,
  decodePlist,
  instanceOf,
  isEqual,
  type LaunchdJob,
  lookThroughShell,
  type Plist,
  PLIST_LIMIT_BYTES,
  type PlistReader,
  readAcl,
  readJob,
  readPlist as readPlistWith,
  realInstallHost,
  Refusal,
  unwrapText,
  type Wanted,
  wrapText,
} from "../install.ts";
import { findProgram } from "../tools/real_limactl.ts";

const readPlist = (text: string) => readPlistWith(text, parse as PlistReader);
const GUARD = "/usr/local/libexec/lima-guard";
const folder = new URL("testdata/plists/", import.meta.url);
const bytesOf = (name: string) => Deno.readFileSync(new URL(name, folder));
const textOf = (name: string) => decodePlist(bytesOf(name), name);
const LIMA = textOf("lima-2.2-daemon.plist");
const encode = (text: string) => new TextEncoder().encode(text);

function wrapped(text: string, name: string, wanted: Partial<Wanted> = {}) {
  const plist = readPlist(text);
  const job = readJob(plist, name);
  return wrapText(plist, job, { guard: GUARD, exitTimeoutS: Math.max(60, job.exitTimeOut ?? 0), ...wanted });
}

function unwrapped(text: string, name: string, backup: string | undefined, wrote?: Plist["value"]) {
  const plist = readPlist(text);
  return unwrapText(plist, readJob(plist, name), {
    backup: backup === undefined ? undefined : readPlist(backup),
    wrote,
  });
}

function refusalOf(act: () => unknown): Refusal {
  try {
    act();
  } catch (error) {
    assert.ok(error instanceof Refusal, `not a refusal: ${error}`);
    return error;
  }
  throw new assert.AssertionError({ message: "it was not refused" });
}

// ── every fixture: what install makes of it, and how it comes back ──

const ALL: Partial<Wanted> = { limaHome: "/Volumes/VMs/lima & co", keepAlive: true };
const MOVED: Partial<Wanted> = {
  ...ALL,
  moved: {
    WorkingDirectory: "/",
    StandardOutPath: "/Library/Logs/lima-guard/default.stdout.log",
    StandardErrorPath: "/Library/Logs/lima-guard/default.stderr.log",
  },
};

const FIXTURES = [...Deno.readDirSync(folder)].map((e) => e.name).filter((n) => n.endsWith(".plist")).sort();

Deno.test("there are fixtures of Lima, of people, and of Homebrew", () => {
  assert.ok(FIXTURES.length >= 26, FIXTURES.join(" "));
});

for (const fixture of FIXTURES) {
  const name = fixture.includes("colima") ? "colima" : "default";
  const before = textOf(fixture);

  Deno.test(`${fixture} becomes what stands beside it`, () => {
    assert.equal(
      wrapped(before, name).text,
      new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytesOf(fixture.replace(/plist$/, "guarded"))),
    );
  });

  for (const [words, wanted] of Object.entries({ "": {}, " and all options": ALL, " and another volume": MOVED })) {
    Deno.test(`${fixture} comes back byte by byte${words}`, () => {
      const after = wrapped(before, name, wanted).text;
      assert.notEqual(after, before);
      assert.deepEqual(encode(unwrapped(after, name, before).text), bytesOf(fixture));
      assert.deepEqual(wrapped(after, name, wanted), { ...wrapped(after, name, wanted), text: after, changes: [] });
    });
  }

  Deno.test(`${fixture} gets its command back without a backup`, () => {
    const after = unwrapped(wrapped(before, name).text, name, undefined).text;
    assert.deepEqual(readPlist(after).value["ProgramArguments"], readPlist(before).value["ProgramArguments"]);
    assert.equal(readJob(readPlist(after), name).guard, undefined);
  });
}

Deno.test("the diff is one that patch takes, for every fixture", async () => {
  const { unifiedDiff } = realInstallHost({ canAsk: false, isVerbose: false });
  const dir = await Deno.makeTempDir({ prefix: "patched-" });
  try {
    for (const fixture of FIXTURES) {
      const before = textOf(fixture);
      const after = wrapped(before, fixture.includes("colima") ? "colima" : "default", ALL).text;
      await Deno.writeTextFile(`${dir}/x.plist`, before);
      await Deno.writeTextFile(`${dir}/diff`, await unifiedDiff("x.plist", before, after));
      // Without --binary patch takes the returns of a diff for those of a mail.
      const args = ["--binary", "-p0", "-i", "diff"];
      const { success, stdout, stderr } = await new Deno.Command("patch", { args, cwd: dir }).output();
      assert.ok(success, `${fixture}: ${new TextDecoder().decode(stdout)}${new TextDecoder().decode(stderr)}`);
      assert.equal(await Deno.readTextFile(`${dir}/x.plist`), after, fixture);
    }
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});

// ── what changes ──

const changesOf = (text: string, wanted: Partial<Wanted> = {}) =>
  Object.fromEntries(wrapped(text, "default", wanted).changes.map(({ key, before, after }) => [key, [before, after]]));

Deno.test("wrapText() changes the command and the exit timeout, and says so", () => {
  const limactl = ["/opt/homebrew/bin/limactl", "start", "default", "--foreground"];
  assert.deepEqual(changesOf(LIMA), {
    ProgramArguments: [limactl, [GUARD, "--run", "default", "--", ...limactl]],
    ExitTimeOut: [undefined, 60],
  });
});

Deno.test("wrapText() replaces the path of another lima-guard and leaves its options", () => {
  const old = wrapped(LIMA, "default", { guard: "/opt/old/lima-guard-0.1" }).text
    .replace("<string>--</string>", "<string>--timeout</string><string>50</string><string>--</string>");
  const { text, changes } = wrapped(old, "default");
  assert.deepEqual(changes.map((c) => c.key), ["ProgramArguments"]);
  const args = readPlist(text).value["ProgramArguments"] as string[];
  assert.deepEqual(args.slice(0, 6), [GUARD, "--run", "default", "--timeout", "50", "--"]);
});

Deno.test("wrapText() replaces Program together with the first argument", () => {
  const { text } = wrapped(textOf("edited-program.plist"), "default");
  assert.equal(readPlist(text).value["Program"], GUARD);
});

Deno.test("wrapText() leaves a KeepAlive that is there, and adds one only when asked", () => {
  const draft = textOf("lima-draft-agent-keep-alive-true.plist");
  assert.equal(readPlist(wrapped(draft, "default", { keepAlive: true }).text).value["KeepAlive"], true);
  assert.equal(readPlist(wrapped(LIMA, "default").text).value["KeepAlive"], undefined);
  const added = wrapped(LIMA, "default", { keepAlive: true }).text;
  assert.deepEqual(readPlist(added).value["KeepAlive"], { SuccessfulExit: false });
  assert.ok(
    added.includes("\t<key>KeepAlive</key>\n\t<dict>\n\t\t<key>SuccessfulExit</key>\n\t\t<false/>\n\t</dict>\n"),
  );
});

Deno.test("wrapText() escapes what it writes", () => {
  const guard = "/opt/R&D <tools>/lima-guard";
  const { text } = wrapped(LIMA, "default", { guard });
  assert.ok(text.includes("<string>/opt/R&amp;D &lt;tools&gt;/lima-guard</string>"));
  assert.equal((readPlist(text).value["ProgramArguments"] as string[])[0], guard);
});

Deno.test("unwrapText() keeps what was changed since the install", () => {
  const after = wrapped(LIMA, "default", ALL).text
    .replace("<string>--foreground</string>", "<string>--foreground</string>\n\t\t<string>--debug</string>")
    .replace("\t<key>RunAtLoad</key>", "\t<key>Nice</key>\n\t<integer>5</integer>\n\t<key>RunAtLoad</key>");
  const back = readPlist(unwrapped(after, "default", LIMA).text).value;
  assert.deepEqual(back, {
    ...readPlist(LIMA).value,
    Nice: 5,
    ProgramArguments: ["/opt/homebrew/bin/limactl", "start", "default", "--foreground", "--debug"],
  });
});

Deno.test("unwrapText() takes only LIMA_HOME out of an environment that others have filled", () => {
  const after = wrapped(LIMA, "default", ALL).text
    .replace("<key>LIMA_HOME</key>", "<key>PATH</key><string>/bin</string><key>LIMA_HOME</key>");
  const back = readPlist(unwrapped(after, "default", LIMA).text).value;
  assert.deepEqual(back["EnvironmentVariables"], { PATH: "/bin" });
});

Deno.test("unwrapText() leaves a plist alone that is not wrapped", () => {
  assert.deepEqual(unwrapped(LIMA, "default", undefined), { text: LIMA, changes: [] });
});

Deno.test("a KeepAlive that was changed since the install stays at the uninstall", () => {
  const after = wrapped(LIMA, "default", { keepAlive: true }).text.replace(
    /<dict>\s*<key>SuccessfulExit<\/key>\s*<false\/>\s*<\/dict>/,
    "<true/>",
  );
  assert.equal(readPlist(unwrapped(after, "default", LIMA).text).value["KeepAlive"], true);
});

Deno.test("unwrapText() gives the very bytes back where all that the install has written is still so", () => {
  for (const name of ["lima-2.2-daemon", "lima-2.2-agent"]) {
    const before = textOf(`${name}.plist`);
    const { text, changes } = wrapped(before, "default", MOVED);
    const wrote = JSON.parse(JSON.stringify(Object.fromEntries(changes.map(({ key, after }) => [key, after]))));
    assert.ok(["KeepAlive", "EnvironmentVariables", "WorkingDirectory"].every((key) => key in wrote), text);
    assert.equal(unwrapped(text, "default", before, wrote).text, before);
  }
});

const HOME = { LIMA_HOME: "/Volumes/VMs/lima & co" };
const OWN_KEYS: [what: string, wanted: Partial<Wanted>, key: string, value: string, wrote: Plist["value"]][] = [
  [
    "a LIMA_HOME of the user's own",
    {},
    "EnvironmentVariables",
    "<dict><key>LIMA_HOME</key><string>/vms</string></dict>",
    {},
  ],
  [
    "a LIMA_HOME that the user has changed",
    { limaHome: HOME.LIMA_HOME },
    "EnvironmentVariables",
    "<dict><key>LIMA_HOME</key><string>/vms</string></dict>",
    { EnvironmentVariables: HOME },
  ],
  ["a KeepAlive of the user's own", {}, "KeepAlive", "<dict><key>SuccessfulExit</key><false/></dict>", {}],
  ["a WorkingDirectory of the user's own", {}, "WorkingDirectory", "<string>/</string>", {}],
  [
    "a log of the user's own",
    {},
    "StandardErrorPath",
    "<string>/Users/zoe/Library/Logs/lima-guard/x.stderr.log</string>",
    {},
  ],
];
for (const [what, wanted, key, value, wrote] of OWN_KEYS) {
  Deno.test(`unwrapText() leaves ${what}, where it is known what the install has written`, () => {
    const after = wrapped(LIMA, "default", wanted).text.replace(
      new RegExp(`<key>${key}</key>\\s*<(\\w+)>[^]*?</\\1>`),
      "",
    )
      .replace("<key>RunAtLoad</key>", `<key>${key}</key>${value}<key>RunAtLoad</key>`);
    const now = readPlist(after).value[key];
    const back = readPlist(unwrapped(after, "default", LIMA, wrote).text).value;
    assert.deepEqual([back[key], unwrapped(after, "default", LIMA).text.includes(value)], [now, false]);
  });
}

// ── refused: what the job is ──

const edit = (from: string | RegExp, to: string) => {
  const text = LIMA.replace(from, to);
  assert.notEqual(text, LIMA, `${from} is not in the fixture`);
  return text;
};
const arg = (...args: string[]) =>
  edit(
    /<array>[^]*<\/array>/,
    `<array>${args.map((a) => `<string>${a.replaceAll("&", "&amp;")}</string>`).join("")}</array>`,
  );

const JOB_REFUSALS: [what: string, text: string, reason: RegExp, hint?: RegExp][] = [
  [
    "the job of another instance",
    edit("io.lima-vm.daemon.default", "io.lima-vm.daemon.k3s"),
    /its Label is "io\.lima-vm\.daemon\.k3s"/,
    /--install k3s/,
  ],
  ["no Label", edit(/<key>Label<\/key>\s*<string>.*<\/string>/, ""), /no Label/],
  ["no ProgramArguments", edit(/<key>ProgramArguments<\/key>\s*<array>[^]*<\/array>/, ""), /no list of strings/],
  ["arguments that are no strings", edit("<string>start</string>", "<integer>1</integer>"), /no list of strings/],
  ["an empty command", edit(/<array>[^]*<\/array>/, "<array/>"), /no list of strings/],
  [
    "another Program",
    edit("<key>RunAtLoad", "<key>Program</key><string>/bin/sh</string><key>RunAtLoad"),
    /Program is "\/bin\/sh"/,
    /make them equal/,
  ],
  ["a shell", arg("/bin/sh", "-c", "limactl start default --foreground"), /not limactl/, /without a shell/],
  [
    "caffeinate",
    arg("/usr/bin/caffeinate", "-s", "/opt/homebrew/bin/limactl", "start", "default", "--foreground"),
    /not limactl/,
  ],
  ["a program that only begins like it", arg("/opt/limactl-old", "start", "default", "--foreground"), /not limactl/],
  ["another command of limactl", arg("limactl", "shell", "default"), /does not start/],
  ["no --foreground", arg("limactl", "start", "default"), /--foreground/],
  ["--foreground=false", arg("limactl", "start", "default", "--foreground=false"), /--foreground/],
  ["no instance", arg("limactl", "start", "--foreground"), /names 0 instances/],
  ["two instances", arg("limactl", "start", "default", "k3s", "--foreground"), /names 2 instances/],
  ["another instance", arg("limactl", "start", "k3s", "--foreground"), /starts "k3s"/],
  ["a template", arg("limactl", "start", "default.yaml", "--foreground"), /starts "default\.yaml"/],
  [
    "a value that looks like the command",
    arg("limactl", "--log-level", "start", "default", "--foreground"),
    /does not start/,
  ],
  [
    "wrapped for another instance",
    arg(GUARD, "--run", "k3s", "--", "limactl", "start", "k3s", "--foreground"),
    /wrapped for "k3s"/,
    /--uninstall k3s/,
  ],
  ["wrapped without an end", arg(GUARD, "--run", "default", "limactl"), /no `--`/],
  [
    "wrapped around a command without --foreground",
    arg(GUARD, "--run", "default", "--", "/opt/bin/limactl", "start", "default"),
    /without --foreground launchd does not watch it/,
  ],
  ["wrapped around something else", arg(GUARD, "--run", "default", "--", "/bin/sleep", "1"), /not limactl/],
  [
    "an ExitTimeOut that is a string",
    edit("<key>RunAtLoad", "<key>ExitTimeOut</key><string>60</string><key>RunAtLoad"),
    /ExitTimeOut/,
  ],
  [
    "an ExitTimeOut that is real",
    edit("<key>RunAtLoad", "<key>ExitTimeOut</key><real>0.5</real><key>RunAtLoad"),
    /ExitTimeOut/,
  ],
  [
    "an ExitTimeOut that is real and whole, as other programs write it",
    edit("<key>RunAtLoad", "<key>ExitTimeOut</key><real>60.0</real><key>RunAtLoad"),
    /ExitTimeOut: it is no integer/,
    /make it 60/,
  ],
  [
    "an environment that is no dict",
    edit("<key>RunAtLoad", "<key>EnvironmentVariables</key><array/><key>RunAtLoad"),
    /EnvironmentVariables/,
  ],
];

for (const [what, text, reason, hint] of JOB_REFUSALS) {
  Deno.test(`readJob() refuses ${what}`, () => {
    const refusal = refusalOf(() => readJob(readPlist(text), "default"));
    assert.match(refusal.message, reason);
    assert.match(refusal.hint ?? "", hint ?? /^/);
  });
}

const COLIMA = textOf("homebrew-colima.plist");
for (
  const [args, instance] of [
    ["", "colima"],
    ["<string>default</string>", "colima"],
    ["<string>colima</string>", "colima"],
    ["<string>work</string>", "colima-work"],
    ["<string>colima-work</string>", "colima-work"],
    ["<string>--profile</string><string>work</string>", "colima-work"],
    ["<string>--profile=work</string>", "colima-work"],
    ["<string>-p</string><string>work</string><string>--cpu</string><string>4</string>", "colima-work"],
    ["<string>-kp</string><string>work</string>", "colima-work"],
    ["<string>-fp</string><string>work</string>", "colima-work"],
    ["<string>-fp=work</string>", "colima-work"],
    ["<string>-kfpwork</string>", "colima-work"],
  ] as const
) {
  Deno.test(`readJob() knows the instance of colima start -f ${args.replaceAll(/<\/?string>/g, " ").trim()}`, () => {
    const text = COLIMA.replace("<string>-f</string>", /-k?f/.test(args) ? args : `<string>-f</string>${args}`);
    assert.equal(readJob(readPlist(text), instance).tool, "colima");
    const { text: after } = wrapped(text, instance);
    const command = readPlist(after).value["ProgramArguments"] as string[];
    assert.deepEqual(command.slice(0, 4), [GUARD, "--run", instance, "--"]);
    assert.match(refusalOf(() => readJob(readPlist(text), "other")).message, /starts "colima/);
    assert.equal(instanceOf(readPlist(text).value), instance);
  });
}

Deno.test("a job that Homebrew's services manage is known as one", () => {
  assert.match(readJob(readPlist(COLIMA), "colima").remarks.join(), /brew services/);
});

Deno.test("a program in Nix's store is a note under every label, and Nix's own labels have theirs", () => {
  const store = COLIMA.replace(/<string>[^<]*\/colima<\/string>/, "<string>/nix/store/x-colima/bin/colima</string>");
  assert.notEqual(store, COLIMA);
  const of = (text: string) => readJob(readPlist(text), "colima").remarks.join("\n");
  assert.match(of(store), /its program is Nix's: where Nix wrote the plist, the next switch writes it again: declare/);
  assert.match(of(wrapped(store, "colima").text), /its program is Nix's/);
  assert.doesNotMatch(of(COLIMA), /Nix/);
  const own = store.replaceAll("homebrew.mxcl.colima", "org.nixos.colima");
  assert.match(of(own), /^Nix manages it/);
  assert.doesNotMatch(of(own), /its program is Nix's/);
});

// ── refused: what the file is ──

const FILE_REFUSALS: [what: string, bytes: Uint8Array, reason: RegExp, hint?: RegExp][] = [
  ["a binary plist", encode("bplist00\xd1\x01\x02"), /binary/, /plutil -convert xml1 '\/a b\/x\.plist'/],
  ["UTF-16", new Uint8Array([0xFF, 0xFE, 0x3C, 0]), /UTF-16/],
  ["bytes that are not UTF-8", new Uint8Array([...encode("<plist>"), 0xC3, 0x28]), /not UTF-8/],
  ["OpenStep text", encode("{ Label = x; }"), /no XML/],
  ["nothing", encode(""), /no XML/],
  ["10 MB", new Uint8Array(10 * 1024 * 1024).fill(32), /more than/],
];
for (const [what, bytes, reason, hint] of FILE_REFUSALS) {
  Deno.test(`decodePlist() refuses ${what}`, () => {
    const refusal = refusalOf(() => decodePlist(bytes, "/a b/x.plist"));
    assert.match(refusal.message, reason);
    assert.match(refusal.hint ?? "", hint ?? /^/);
  });
}

const doctype = /<!DOCTYPE[^>]*>/;
const laughs = Array.from({ length: 12 }, (_, i) => `<!ENTITY l${i + 1} "${`&l${i};`.repeat(10)}">`).join("");
const deep = (n: number) => `<plist><dict><key>a</key>${"<array>".repeat(n)}${"</array>".repeat(n)}</dict></plist>`;
const XML_REFUSALS: [what: string, text: string, reason: RegExp][] = [
  ["entities that grow", edit(doctype, `<!DOCTYPE plist [<!ENTITY l0 "ha">${laughs}]>`), /declarations of its own/],
  ["an external entity", edit(doctype, `<!DOCTYPE plist [<!ENTITY x SYSTEM "file:///etc/passwd">]>`), /declarations/],
  ["an external DTD", edit(doctype, `<!DOCTYPE plist SYSTEM "http://example.com/x.dtd">`), /declarations/],
  ["a DTD in the middle", edit("<dict>", `<!DOCTYPE plist><dict>`), /declarations/],
  ["an entity that is not declared", edit("limactl<", "limactl&x;<"), /"&x;" is no entity/],
  ["a bare &, as Lima writes it", edit("homebrew/bin", "R&D/bin"), /no entity/],
  ["a number that is no character", edit("limactl<", "limactl&#x110000;<"), /no entity/],
  ["a control character", edit("limactl<", "limactl\x01<"), /control character/],
  ["a control character in numbers", edit("limactl<", "limactl&#0;<"), /control character/],
  ["deep nesting", deep(100_000), /deeper/],
  ["33 levels", deep(33), /deeper/],
  ["a file that was cut short", LIMA.slice(0, 600), /cut short/],
  ["a comment that is never closed", edit("<dict>", "<dict><!-- "), /cut short/],
  ["Lima's <no value>", edit("zoe", "<no value>"), /<no value>/],
  ["crossed tags", edit("</array>", "</dict>"), /does not close/],
  ["an unknown element", edit("<true/>", "<yes/>"), /no element/],
  ["an attribute", edit("<true/>", `<true a="b"/>`), /attribute/],
  [
    "a key twice",
    edit("<key>RunAtLoad", "<key>Label</key><string>x</string><key>RunAtLoad"),
    /"Label" is there twice/,
  ],
  ["a key without value", edit("<true/>", ""), /cannot be here/],
  ["a key at the end", edit("</dict>", "<key>x</key></dict>"), /no value/],
  ["__proto__", edit("<key>RunAtLoad", "<key>__proto__</key><dict/><key>RunAtLoad"), /cannot be meant/],
  ["text between values", edit("<true/>", "<true/>yes"), /outside of a value/],
  ["two roots", `${LIMA}<plist/>`, /cannot be here/],
  ["a root that is no dict", "<plist><array/></plist>", /no dict/],
  ["an empty plist", "<plist/>", /no dict/],
  ["a hexadecimal integer", edit("<true/>", "<integer>0x1A</integer>"), /hexadecimal/],
  ["an integer that is none", edit("<true/>", "<integer>abc</integer>"), /no integer/],
  ["an integer that loses digits", edit("<true/>", "<integer>9007199254740993</integer>"), /no integer/],
  ["a return written as a number", edit("limactl<", "limactl&#13;<"), /no entity/],
  ["another encoding", edit("UTF-8", "ISO-8859-1"), /encoding/],
  ["an instruction in the middle", edit("<true/>", "<?x y?><true/>"), /processing instruction/],
  ["an instruction without name", edit("<dict>", "<?? ?><dict>"), /./],
  ["a declaration in the middle", edit("<plist", "<?xml version='1.0'?><plist"), /not well-formed/],
  ["HTML", "<html><body>404</body></html>", /no element/],
];
for (const [what, text, reason] of XML_REFUSALS) {
  Deno.test(`readPlist() refuses ${what}`, () => {
    assert.match(refusalOf(() => readPlist(text)).message, reason);
  });
}

Deno.test("hostile texts of the largest size cost no more than a reading does", () => {
  const n = PLIST_LIMIT_BYTES - 100;
  const hostile = [
    `<plist>${"<".repeat(n)}`,
    `<plist${" ".repeat(n)}`,
    `<plist ${"a".repeat(n)}`,
    `<plist ${"a=".repeat(n / 2)}`,
    `<plist><dict><key>${"&".repeat(n)}`,
    `<plist><dict><key>${"&a".repeat(n / 2)}`,
    `<plist>${"<!--".repeat(n / 4)}`,
    `<plist>${"<!---->".repeat(n / 7)}`,
    `<!DOCTYPE plist ${" ".repeat(n)}`,
    `<plist>${"<dict>".repeat(n / 6)}`,
    `<?xml ${"encoding".repeat(n / 8)}?>`,
  ];
  const begun = performance.now();
  for (const text of hostile) refusalOf(() => readPlist(text));
  // Anything quadratic would take minutes.
  assert.ok(performance.now() - begun < 10_000, `${Math.round(performance.now() - begun)} ms`);
});

Deno.test("readPlist() never throws anything but a refusal, whatever the text", () => {
  const piece = fc.constantFrom(
    ..."<plist>|<dict>|</dict>|</plist>|<key>|</key>|a|&amp;|&|<!--|-->|<string>|</string>|<![CDATA[|]]>|<true/>|<integer>|</integer>|7| |\n|<?x|?>|<!DOCTYPE plist>|<data>|</data>|=|\uFEFF"
      .split("|"),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 30 }), (pieces) => {
      try {
        readPlist(pieces.join(""));
      } catch (error) {
        assert.ok(error instanceof Refusal, String(error));
      }
    }),
    { numRuns: 2000 },
  );
});

Deno.test("a fixture with any one byte changed is refused, or read as the package reads it", () => {
  const bytes = bytesOf("lima-2.3-daemon-keep-alive-lima-home.plist");
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 0, max: 255 }), (at, byte) => {
      const changed = bytes.slice();
      changed[at] = byte;
      try {
        const text = decodePlist(changed, "x.plist");
        assert.ok(isEqual(readPlist(text).value, parse(text)));
      } catch (error) {
        assert.ok(error instanceof Refusal, String(error));
      }
    }),
    { numRuns: 1500 },
  );
});

// ── any plist ──

const blank = fc.constantFrom(
  "\n\t",
  "\n\t",
  "\r\n    ",
  "",
  " ",
  "\n\n\t\t",
  "\n<!-- a & b <key>ExitTimeOut</key> -->\n\t",
);
const word = fc.string({
  unit: fc.constantFrom(..."abcXYZ019 ./-_&<>\"'é漢🦙"),
  minLength: 1,
  maxLength: 12,
});

/** A string element, spelt in one of the ways there are. */
const spelt = (text: string, how: number) => {
  const escaped = text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  if (how === 0 && !text.includes("]]>")) return `<![CDATA[${text}]]>`;
  if (how === 1) return [...text].map((c) => `&#x${c.codePointAt(0)!.toString(16)};`).join("");
  return escaped;
};

const leaf = fc.oneof(
  fc.tuple(word, fc.nat(4)).map(([text, how]) => `<string>${spelt(text, how)}</string>`),
  fc.integer({ min: -1000, max: 100_000 }).map((n) => `<integer>${n}</integer>`),
  fc.constantFrom(
    "<true/>",
    "<false/>",
    "<array/>",
    "<dict/>",
    "<string/>",
    "<real>1.5</real>",
    "<data>\naGk=\n</data>",
  ),
);

const entry = (key: string, value: fc.Arbitrary<string>) =>
  fc.tuple(blank, blank, value).map(([a, b, v]) => `${a}<key>${key}</key>${b}${v}`);
const dictOf = (...entries: fc.Arbitrary<string>[]) =>
  fc.tuple(blank, ...entries).map(([end, ...all]) => `<dict>${all.join("")}${end}</dict>`);
const maybe = (arb: fc.Arbitrary<string>) => fc.oneof(fc.constant(""), arb);

const PROGRAM = "/opt/R&D/limactl";
const anyPlist = fc.tuple(
  fc.constantFrom("", "\uFEFF"),
  fc.shuffledSubarray([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], { minLength: 10 }),
  fc.tuple(
    entry("Label", fc.constant("<string>io.lima-vm.daemon.default</string>")),
    entry(
      "ProgramArguments",
      fc.tuple(fc.array(blank, { minLength: 6, maxLength: 6 }), fc.nat(4)).map(([b, how]) =>
        `<array>${b[0]}<string>${spelt(PROGRAM, how)}</string>${b[1]}<string>start</string>${
          b[2]
        }<string>--foreground</string>${b[3]}<string>default</string>${b[4]}</array>`
      ),
    ),
    maybe(entry("Program", fc.nat(4).map((how) => `<string>${spelt(PROGRAM, how)}</string>`))),
    maybe(
      entry(
        "ExitTimeOut",
        fc.constantFrom(
          "<integer>0</integer>",
          "<integer> 5\n</integer>",
          "<integer>+60</integer>",
          "<integer>900</integer>",
        ),
      ),
    ),
    maybe(
      entry(
        "KeepAlive",
        fc.oneof(
          fc.constantFrom("<true/>", "<dict/>"),
          dictOf(entry("SuccessfulExit", fc.constantFrom("<true/>", "<false/>"))),
        ),
      ),
    ),
    maybe(entry(
      "EnvironmentVariables",
      fc.oneof(
        fc.constant("<dict/>"),
        dictOf(),
        dictOf(entry("PATH", leaf)),
        dictOf(entry("LIMA_HOME", fc.constant("<string>/Volumes/VMs/lima</string>"))),
        dictOf(
          entry("PATH", leaf),
          entry("LIMA_HOME", fc.constant("<string>/Volumes/VMs/lima</string>")),
          entry("x", leaf),
        ),
      ),
    )),
    maybe(entry("WorkingDirectory", fc.tuple(word, fc.nat(4)).map(([t, how]) => `<string>${spelt(t, how)}</string>`))),
    maybe(entry("StandardOutPath", fc.tuple(word, fc.nat(4)).map(([t, how]) => `<string>${spelt(t, how)}</string>`))),
    maybe(entry("StandardErrorPath", fc.constant("<string>launchd.stderr.log</string>"))),
    fc.array(fc.tuple(word, fc.oneof(leaf, dictOf(entry("a", leaf), entry("b", leaf)))), { maxLength: 4 }).chain((
      pairs,
    ) =>
      fc.tuple(...pairs.map(([key, value], i) => entry(`x${i}${spelt(key, 2)}`, fc.constant(value)))).map((all) =>
        all.join("")
      )
    ),
  ),
  blank,
  fc.constantFrom("", "\n", "\n<!-- end -->", "<?x y?>\n"),
).map(([bom, order, entries, end, tail]) =>
  `${bom}<?xml version="1.0" encoding="UTF-8"?>\n<plist version='1.0'><dict>${
    order.map((i) => entries[i]).join("")
  }${end}</dict>\n</plist>${tail}`
);

const anyWanted = fc.record({
  limaHome: fc.constantFrom(undefined, "/Volumes/VMs/lima"),
  keepAlive: fc.boolean(),
  exitTimeoutS: fc.constantFrom(undefined, 60, 45),
  moves: fc.boolean(),
  guard: fc.constantFrom(GUARD, "/opt/R&D <2>/lima-guard"),
}).map(({ moves, limaHome, exitTimeoutS, ...rest }): Wanted => ({
  ...rest,
  ...limaHome === undefined ? {} : { limaHome },
  ...exitTimeoutS === undefined ? {} : { exitTimeoutS },
  ...moves ? { moved: MOVED.moved! } : {},
}));

const NAMED = [
  "Program",
  "ProgramArguments",
  "ExitTimeOut",
  "KeepAlive",
  "EnvironmentVariables",
  "WorkingDirectory",
  "StandardOutPath",
  "StandardErrorPath",
];

/** What the wrapped plist must say, written a second time and in another way. */
function expected(plist: Plist, job: LaunchdJob, wanted: Wanted): Record<string, unknown> {
  const { value } = plist;
  const environment = value["EnvironmentVariables"] as Record<string, unknown> | undefined;
  return {
    ...value,
    ...value["Program"] === undefined ? {} : { Program: wanted.guard },
    ProgramArguments: [wanted.guard, "--run", "default", "--", ...job.command],
    ...wanted.exitTimeoutS === undefined ? {} : { ExitTimeOut: wanted.exitTimeoutS },
    ...wanted.keepAlive && value["KeepAlive"] === undefined ? { KeepAlive: { SuccessfulExit: false } } : {},
    ...isTurned(value["KeepAlive"]) ? { KeepAlive: { ...value["KeepAlive"] as object, SuccessfulExit: false } } : {},
    ...wanted.limaHome === undefined ? {} : { EnvironmentVariables: { ...environment, LIMA_HOME: wanted.limaHome } },
    ...Object.fromEntries(Object.entries(wanted.moved ?? {}).filter(([key]) => value[key] !== undefined)),
  };
}

function isTurned(keepAlive: unknown): boolean {
  return typeof keepAlive === "object" && (keepAlive as Record<string, unknown>)["SuccessfulExit"] === true;
}

Deno.test("any plist in any formatting: only the named keys change, and every byte comes back", () => {
  let tried = 0;
  fc.assert(
    fc.property(anyPlist, anyWanted, (text, wanted) => {
      const plist = readPlist(text);
      const job = readJob(plist, "default");
      const after = wrapText(plist, job, wanted);
      const value = parse(after.text.replace(/^\uFEFF/, "")) as Record<string, unknown>;
      assert.ok(isEqual(value, expected(plist, job, wanted)), after.text);
      assert.ok(after.changes.every(({ key }) => NAMED.includes(key)));
      // Comments and instructions are no values: they must all be there still.
      assert.deepEqual(after.text.match(/<!--.*?-->|<\?.*?\?>/gs), text.match(/<!--.*?-->|<\?.*?\?>/gs));
      assert.equal(unwrapped(after.text, "default", text).text, text);
      assert.deepEqual(wrapText(readPlist(after.text), readJob(readPlist(after.text), "default"), wanted).changes, []);
      tried++;
    }),
    { numRuns: 600 },
  );
  assert.ok(tried >= 600);
});

// ── what a job is, and what others write ──

Deno.test("KeepAlive {SuccessfulExit: true} is turned round, whatever else is in it, and comes back", () => {
  for (const more of ["", "<key>Crashed</key><true/>"]) {
    const dict = `<dict>${more}<key>SuccessfulExit</key><true/></dict>`;
    const before = edit("<key>RunAtLoad", `<key>KeepAlive</key>${dict}<key>RunAtLoad`);
    const after = wrapped(before, "default").text;
    const value = readPlist(after).value["KeepAlive"];
    assert.deepEqual(value, more === "" ? { SuccessfulExit: false } : { Crashed: true, SuccessfulExit: false });
    assert.equal(unwrapped(after, "default", before).text, before);
  }
  for (const keep of ["<true/>", "<false/>", "<dict><key>SuccessfulExit</key><false/></dict>", "<dict/>"]) {
    const before = edit("<key>RunAtLoad", `<key>KeepAlive</key>${keep}<key>RunAtLoad`);
    assert.ok(!wrapped(before, "default").changes.some((c) => c.key === "KeepAlive"), keep);
  }
});

Deno.test("what KeepAlive does after a stop that was asked for is said, whatever its form", () => {
  const again = /starts the instance again after every stop, asked for or not/;
  const dict = (key: string, value: boolean) => `<dict><key>${key}</key><${value}/></dict>`;
  for (
    const [keep, words] of [
      ["<true/>", again],
      [dict("Crashed", false), again],
      [dict("Crashed", true), /^KeepAlive has Crashed: lima-guard ends with a status, .*: launchd sees no crash$/],
      [dict("SuccessfulExit", false), /^$/],
      ["<false/>", /^$/],
    ] as const
  ) {
    const text = edit("<key>RunAtLoad", `<key>KeepAlive</key>${keep}<key>RunAtLoad`);
    assert.match(readJob(readPlist(text), "default").remarks.join(), words, keep);
  }
});

Deno.test("a key that is written with an entity is found, or the plist is refused", () => {
  const twice = edit("<key>RunAtLoad", "<key>Lab&#101;l</key><string>x</string><key>RunAtLoad");
  assert.match(refusalOf(() => readPlist(twice)).message, /"Label" is there twice/);
  const spelt = edit("<key>ProgramArguments", "<key>Program&#65;rguments");
  assert.deepEqual(unwrapped(wrapped(spelt, "default").text, "default", spelt).text, spelt);
});

Deno.test("the options of a wrapped job stay, and one that is asked for replaces the old one in its place", () => {
  const once = wrapped(LIMA, "default", { guardOptions: ["--timeout", "45", "--on-event", "/opt/hook"] }).text;
  const args = (text: string) => (readPlist(text).value["ProgramArguments"] as string[]).slice(0, 8);
  assert.deepEqual(args(once), [GUARD, "--run", "default", "--timeout", "45", "--on-event", "/opt/hook", "--"]);
  assert.deepEqual(args(wrapped(once, "default").text), args(once));
  const other = wrapped(once, "default", { guardOptions: ["--timeout", "30", "--on-event", "/opt/hook"] }).text;
  assert.deepEqual(args(other)[4], "30");
  assert.equal(unwrapped(other, "default", LIMA).text, LIMA);
});

Deno.test("our own job is known however its options are written", () => {
  const head = (...words: string[]) =>
    edit("<array>", `<array>${[GUARD, ...words, "--"].map((w) => `<string>${w}</string>`).join("")}`);
  for (const words of [["-v", "--run", "default"], ["--run", "--timeout", "9", "default"], ["--run=x", "default"]]) {
    const read = () => readJob(readPlist(head(...words)), "default");
    if (words[0] === "--run=x") refusalOf(read);
    else assert.equal(read().guard, GUARD, words.join(" "));
  }
  assert.match(refusalOf(() => readJob(readPlist(head("--run", "k3s")), "default")).message, /wrapped for "k3s"/);
});

Deno.test("Nix's prefix is looked through: exactly that, and no shell character behind it", () => {
  const through = (command: string, ...more: string[]) => lookThroughShell(["/bin/sh", "-c", command, ...more]);
  const exec = "/bin/wait4path /nix/store && exec /nix/store/x/bin/limactl start default --foreground";
  assert.deepEqual(through(exec), ["/nix/store/x/bin/limactl", "start", "default", "--foreground"]);
  for (
    const other of [
      ` ${exec}`,
      `${exec} `,
      `${exec};`,
      `${exec} $HOME`,
      `${exec} 'a'`,
      `${exec} | tee x`,
      `${exec}\n`,
      exec
        .replace("exec ", ""),
      exec.replace(" && ", " ; "),
      exec.replace("/nix/store &&", "/nix/store /x &&"),
    ]
  ) assert.equal(through(other), undefined, other);
  assert.equal(through(exec, "more"), undefined);
  assert.equal(lookThroughShell(["/bin/zsh", "-c", exec]), undefined);
});

// ── flags: with and without a value, known and unknown ──

const VALUED = {
  limactl:
    "--ssh-port --audio-device --audio-interface --image-variant --shell --arch-variant --set --mount-only --vm-type",
  colima: "-i --disk-image --disk-image-mirror --registry-mirror --downloader --model-runner --k3s-listen-port " +
    "--kubernetes-disable --root-disk --dns-host",
};
for (const [tool, flags] of Object.entries(VALUED)) {
  Deno.test(`${tool}: the value of a flag is no instance`, () => {
    for (const flag of flags.split(" ")) {
      const [name, foreground] = tool === "limactl" ? ["default", "--foreground"] : ["colima", "-f"];
      const command = (...words: string[]) => arg(`/opt/bin/${tool}`, "start", foreground, ...words);
      const instance = tool === "limactl" ? ["default"] : [];
      const label = (text: string) => text.replace("io.lima-vm.daemon.default", "x");
      for (const words of [[flag, "value"], [`${flag}=value`]]) {
        assert.equal(readJob(readPlist(label(command(...words, ...instance))), name).tool, tool, words.join(" "));
      }
    }
  });
}

/** The flags that a `limactl start --help` lists, and whether each takes a value in the next argument. */
function flagsIn(help: string): { flag: string; isValued: boolean }[] {
  const lines = help.matchAll(/^ +(?:(-\w), )?(--[\w-]+)(?: (\S+))?(?: .*)?$/gm);
  return [...lines].flatMap(([, short, long, type = ""]) =>
    [short, long].filter((flag) => flag !== undefined).map((flag) => ({ flag, isValued: /^[a-z]/.test(type) }))
  );
}

/** What the limactl on PATH says of `start`, to an ordinary user; or why there is none. */
function startHelp(): { help: string } | { why: string } {
  const limactl = findProgram("limactl");
  if (limactl === undefined) return { why: "no limactl on PATH" };
  const user = Deno.uid() === 0 ? { uid: 65534, gid: 65534 } : {};
  const env = { HOME: "/nonexistent", PATH: "/usr/bin:/bin" };
  const command = new Deno.Command(limactl, { args: ["start", "--help"], env, clearEnv: true, cwd: "/", ...user });
  const { success, stdout } = command.outputSync();
  const help = new TextDecoder().decode(stdout);
  return success && help.includes("--foreground") ? { help } : { why: `${limactl} start --help does not answer` };
}

const real = startHelp();
Deno.test({
  name: `the flags of a real limactl start are known, and which of them take a value${
    "why" in real ? `: skipped: ${real.why}` : ""
  }`,
  ignore: "why" in real,
  fn() {
    const flags = flagsIn("help" in real ? real.help : "");
    assert.ok(flags.length > 15 && flags.some((f) => f.isValued) && flags.some((f) => !f.isValued), String(flags));
    for (const { flag, isValued } of flags) {
      const words = flag === "--foreground" ? [] : isValued ? [flag, "k3s"] : [flag];
      const text = arg("/opt/bin/limactl", "start", "--foreground", ...words, "default");
      assert.equal(readJob(readPlist(text), "default").tool, "limactl", flag);
    }
  },
});

Deno.test("an unknown flag without a value is named, and never counted; with = it is carried along", () => {
  const start = (...words: string[]) => readPlist(arg("/opt/bin/limactl", "start", "--foreground", ...words));
  const refusal = refusalOf(() => readJob(start("--brand-new", "default"), "default"));
  assert.match(refusal.message, /--brand-new is not known/);
  assert.match(refusal.hint ?? "", /--brand-new=VALUE/);
  assert.equal(readJob(start("--brand-new=1", "default"), "default").tool, "limactl");
});

Deno.test("every program that is not limactl is refused with the shortest way that works", () => {
  const rows: [words: string[], hint: RegExp][] = [
    [["/opt/bin/limactl", "start", "default"], /autostart enable default --condition=boot, then remove/],
    [["/opt/bin/limactl", "start", "default", "two", "--foreground"], /one job for each instance/],
    [["/usr/bin/su", "-", "zoe", "-c", "limactl start default --foreground"], /UserName/],
    [["/usr/bin/env", "LIMA_HOME=/x", "limactl", "start", "default", "--foreground"], /EnvironmentVariables/],
    [["/bin/zsh", "-c", "limactl start default --foreground"], /without a shell/],
    [["/usr/local/bin/rdctl", "start"], /application owns/],
    [["/usr/local/bin/finch", "vm", "start"], /application owns/],
    [
      ["/Applications/Rancher Desktop.app/x/bin/limactl", "start", "default", "--foreground"],
      /leave it to the application/,
    ],
    [["/bin/sh", "-c", "/bin/wait4path /nix/store && exec a; b"], /declare in Nix/],
  ];
  for (const [words, hint] of rows) {
    const refusal = refusalOf(() => readJob(readPlist(arg(...words)), "default"));
    assert.match(refusal.hint ?? "", hint, `${words.join(" ")}: ${refusal.message}`);
  }
});

Deno.test("instanceOf() knows whose job a plist is, whatever its label", () => {
  const of = (...words: string[]) => instanceOf(readPlist(arg(...words)).value);
  assert.equal(of("/opt/bin/limactl", "start", "--vm-type", "vz", "k3s", "--foreground"), "k3s");
  assert.equal(of("/opt/bin/limactl", "start", "k3s"), "k3s", "without --foreground too");
  assert.equal(of(GUARD, "--run", "--timeout", "9", "k3s", "--", "/x"), "k3s");
  assert.equal(of("/opt/bin/colima", "start", "-f", "--profile", "work"), "colima-work");
  assert.equal(of("/opt/bin/colima", "start", "-pwork", "-f"), "colima-work", "a value may follow its letter at once");
  assert.equal(of("/opt/bin/colima", "start", "a", "--profile=work"), "colima-work", "--profile beats the argument");
  assert.equal(of("/bin/sh", "-c", "/bin/wait4path /nix/store && exec /n/limactl start k3s"), "k3s");
  assert.equal(of("/opt/bin/limactl", "start", "--foreground"), "default", "limactl's own default");
  assert.equal(of("/usr/bin/caffeinate", "-s", "/opt/bin/limactl", "start", "k3s"), "k3s");
  assert.equal(of("/bin/zsh", "-lc", "limactl list; limactl start 'k3s' && true"), "k3s");
  assert.equal(of("/usr/bin/env", GUARD, "--run", "colima", "--", "/opt/bin/colima", "start", "-f"), "colima");
  assert.equal(instanceOf({ Program: "/opt/bin/limactl", ProgramArguments: ["lima", "start", "k3s"] }), "k3s");
  assert.equal(instanceOf({ Program: "/opt/bin/limactl" }), undefined, "no verb");
  for (const words of [["/bin/ls"], ["/opt/bin/limactl", "list"], ["/opt/bin/limactl", "stop", "k3s"]]) {
    assert.equal(of(...words), undefined, words.join(" "));
  }
});

Deno.test("compareVersions() orders versions as people read them", () => {
  const order = ["0.1.0", "0.2.0-rc.1", "0.2.0", "0.10.0", "1.0.0"];
  for (let i = 1; i < order.length; i++) assert.ok(compareVersions(order[i - 1]!, order[i]!) < 0, order[i]);
  assert.equal(compareVersions("0.2.0", "0.2.0"), 0);
});

Deno.test("readAcl() finds the first entry that lets another user change something", () => {
  const listed = "drwxr-xr-x+ 5 root  wheel  160 Jan  1 00:00 /opt\n 0: group:staff deny delete\n";
  assert.equal(readAcl(listed, ["user:root"]), undefined);
  assert.equal(readAcl(`${listed} 1: user:eve allow read,execute\n`, []), undefined);
  assert.match(readAcl(`${listed} 1: user:eve inherited allow read,add_file\n`, ["user:root"]) ?? "", /user:eve/);
  assert.equal(readAcl(`${listed} 1: user:zoe allow write\n`, ["user:zoe"]), undefined);
  for (const who of ["group:CORP\\domain users", "AB12-34"]) {
    for (const how of ["allow", "inherited allow"]) {
      assert.match(readAcl(`${listed} 1: ${who} ${how} add_file\n`, []) ?? "", /add_file/, who);
    }
    assert.equal(readAcl(`${listed} 1: ${who} inherited deny write\n`, []), undefined);
  }
});
