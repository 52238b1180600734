/** Who could change what a job runs: no plain user, by no file, folder or link, and root never through somebody's folder. */

import assert from "node:assert/strict";
import { type FileLook, judgeWay, prefixFor, realHost, Refusal, wayTo } from "../install.ts";
import { FakeMac } from "./helpers/launchd.ts";
import { NO_ORDINARY_USER, ordinaryUser } from "./helpers/user.ts";

const ZOE = { uid: 501, name: "zoe" };
const ROOT = { uid: 0, name: "root" };
const look = (path: string, more: Partial<FileLook> = {}): FileLook => ({
  path,
  kind: "directory",
  uid: 0,
  gid: 0,
  mode: 0o755,
  dev: 1,
  size: 0,
  ...more,
});
const guard = (more: Partial<FileLook> = {}) => look("/opt/lima-guard", { kind: "file", ...more });

// A job of a user, and one of root; what stands in the way; whether it is refused, and a warning.
type Row = [what: string, way: FileLook[], zoe: "runs" | "refused", root: "runs" | "refused", words?: RegExp];
const ROWS: Row[] = [
  ["root's guard in root's folders", [look("/"), look("/opt"), guard()], "runs", "runs"],
  ["the user's own guard", [look("/"), guard({ uid: 501, gid: 20 })], "runs", "refused", /belongs to user 501/],
  [
    "the user's own folder",
    [look("/"), look("/opt", { uid: 501 }), guard()],
    "runs",
    "refused",
    /\/opt belongs to user 501/,
  ],
  ["somebody else's guard", [look("/"), guard({ uid: 502 })], "refused", "refused", /belongs to user 502/],
  ["somebody else's folder", [look("/Users/eve", { uid: 502 }), guard()], "refused", "refused", /user 502/],
  ["a guard that all can write", [guard({ mode: 0o757 })], "refused", "refused", /everybody/],
  ["a folder that all can write", [look("/opt", { mode: 0o777 }), guard()], "refused", "refused", /everybody/],
  ["a sticky folder that all can write", [look("/tmp", { mode: 0o1777 }), guard()], "runs", "runs"],
  ["somebody's file in a sticky folder", [look("/tmp", { mode: 0o1777 }), guard({ uid: 502 })], "refused", "refused"],
  ["a file with the sticky bit that all can write", [guard({ mode: 0o1777 })], "refused", "refused", /everybody/],
  [
    "a folder of group admin",
    [look("/opt/homebrew", { gid: 80, mode: 0o775 }), guard()],
    "runs",
    "refused",
    /group (admin|80)/,
  ],
  ["a folder of group wheel", [look("/opt", { gid: 0, mode: 0o775 }), guard()], "runs", "refused", /group (wheel|0)/],
  ["a folder of group staff", [look("/opt", { gid: 20, mode: 0o775 }), guard()], "refused", "refused", /group 20/],
  ["a guard of group staff", [guard({ gid: 20, mode: 0o775 })], "refused", "refused", /group 20/],
  ["a group that can only read", [look("/opt", { gid: 20, mode: 0o755 }), guard({ gid: 20 })], "runs", "runs"],
  ["a link of root's", [look("/opt", { kind: "link", mode: 0o777 }), guard()], "runs", "runs"],
  ["a link of somebody's", [look("/opt", { kind: "link", uid: 502, mode: 0o777 }), guard()], "refused", "refused"],
];
for (const [what, way, zoe, root, words] of ROWS) {
  Deno.test(`judgeWay(): ${what}`, () => {
    const judged = { zoe: judgeWay(way, ZOE), root: judgeWay(way, ROOT) };
    const verdict = (j: typeof judged.zoe) => j.trouble === undefined ? "runs" : "refused";
    assert.deepEqual([verdict(judged.zoe), verdict(judged.root)], [zoe, root], JSON.stringify(judged));
    const said = [judged.zoe, judged.root].map((j) => [j.trouble ?? "", ...j.warnings].join(" ")).filter((s) =>
      s !== ""
    );
    if (words) assert.ok(said.length > 0 && said.every((s) => words.test(s)), said.join("; "));
    if (judged.zoe.trouble) assert.match(judged.zoe.hint ?? "", /^ls -ld/);
  });
}

Deno.test("wayTo() sees every link, and every folder on the way to where it leads", async () => {
  const host = await realHost({ canAsk: false, isVerbose: false });
  const root = Deno.realPathSync(Deno.makeTempDirSync());
  try {
    Deno.mkdirSync(`${root}/real/deep`, { recursive: true });
    Deno.mkdirSync(`${root}/a`);
    Deno.writeTextFileSync(`${root}/real/deep/guard`, "");
    Deno.symlinkSync("../b/guard", `${root}/a/guard`);
    Deno.symlinkSync(`${root}/real/deep`, `${root}/b`);
    const seen = wayTo(host, `${root}/a/./guard`).map((l) =>
      `${l.kind === "link" ? "@" : ""}${l.path.replace(root, "")}`
    );
    const own = seen.slice(seen.indexOf("") + 1);
    assert.equal(seen[0], "/");
    assert.deepEqual(own.filter((p) => !root.startsWith(p)), [
      "/a",
      "@/a/guard",
      "@/b",
      "/real",
      "/real/deep",
      "/real/deep/guard",
    ]);
    Deno.symlinkSync("loop", `${root}/loop`);
    assert.throws(() => wayTo(host, `${root}/loop`), Refusal);
    assert.deepEqual(wayTo(host, `${root}/no/such`).at(-1)?.path, root);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});

Deno.test("files are made by their owner: never by root in somebody's folder, never by one user for another", () => {
  const rows: [uid: number, owner: number, kind: "daemon" | "agent", prefix: string[] | "refused"][] = [
    [501, 501, "agent", []],
    [0, 0, "daemon", []],
    [0, 501, "agent", ["sudo", "-n", "-H", "-u", "#501"]],
    [0, 501, "daemon", ["sudo", "-n", "-H", "-u", "#501"]],
    [501, 0, "daemon", ["sudo", "-n"]],
    [501, 0, "agent", "refused"],
    [501, 502, "agent", "refused"],
    [501, 502, "daemon", ["sudo", "-n", "-H", "-u", "#502"]],
  ];
  for (const [uid, owner, kind, prefix] of rows) {
    const act = () => prefixFor({ uid, canAsk: false }, owner, kind);
    if (prefix === "refused") assert.throws(act, Refusal);
    else assert.deepEqual(act(), prefix);
  }
});

// ── the same on a pretended Mac, through the whole of install.ts ──

const PLIST = Deno.readTextFileSync(new URL("testdata/plists/lima-2.2-daemon.plist", import.meta.url));
const here = (mac: FakeMac) => PLIST.replaceAll("/Users/zoe", mac.home);

const WHOLE: [what: string, spoil: (mac: FakeMac) => void, words: RegExp][] = [
  [
    "the guard's folder is somebody else's",
    (mac) => mac.settings.owners = [{ prefix: mac.guards, uid: 502 }],
    /libexec belongs to user 502/,
  ],
  [
    "a parent of it can be written by everybody",
    (mac) => mac.settings.owners = [{ prefix: `${mac.root}/system/usr/local`, uid: 0, mode: 0o777 }],
    /usr\/local can be written by everybody/,
  ],
  ["a link on the way to it is somebody else's", (mac) => {
    Deno.removeSync(mac.guards);
    Deno.symlinkSync(`${mac.root}/system/opt`, mac.guards);
    mac.settings.owners = [{ prefix: mac.guards, uid: 502 }];
  }, /belongs to user 502/],
  ["where the link leads can be written by everybody", (mac) => {
    Deno.removeSync(mac.guards);
    Deno.symlinkSync(`${mac.root}/system/opt`, mac.guards);
    mac.settings.owners = [{ prefix: `${mac.root}/system/opt`, uid: 0, mode: 0o777 }];
  }, /opt can be written by everybody/],
  [
    "the daemon's plist is its user's",
    (mac) => mac.settings.owners = [{ prefix: mac.daemons, uid: 501 }],
    /belongs to user 501|others than root/,
  ],
  [
    "the daemon's plist can be written by its group",
    (mac) => Deno.chmodSync(`${mac.daemons}/io.lima-vm.daemon.default.plist`, 0o664),
    /others than root can write it/,
  ],
  ["the daemon's plist is a link into a user's folder", (mac) => {
    const file = `${mac.daemons}/io.lima-vm.daemon.default.plist`;
    Deno.renameSync(file, `${mac.home}/mine.plist`);
    Deno.symlinkSync(`${mac.home}/mine.plist`, file);
  }, /belongs to user 501/],
];
for (const [what, spoil, words] of WHOLE) {
  for (const uid of [501, 0]) {
    Deno.test(`${uid === 0 ? "root" : "zoe"} installs nothing for a daemon when ${what}`, async () => {
      await using mac = FakeMac.make({ uid });
      Deno.mkdirSync(mac.guards, { recursive: true });
      Deno.mkdirSync(`${mac.root}/system/opt`);
      const file = mac.daemon("default", here(mac));
      spoil(mac);
      const run = await mac.run(["--yes", "default"]);
      assert.equal(run.status, 1, run.stdout);
      assert.match(run.stdout, words);
      assert.equal(Deno.readTextFileSync(file), here(mac));
      assert.ok(mac.log().every((line) => /^(id|launchctl print|codesign --verify)/.test(line)), mac.log().join("\n"));
    });
  }
}

Deno.test("a folder of group admin is worth a warning for a user's job", async () => {
  await using mac = FakeMac.make({ owners: [] });
  Deno.mkdirSync(mac.guards, { recursive: true });
  mac.settings.owners = [{ prefix: `${mac.root}/system/usr/local`, uid: 0, gid: 80, mode: 0o775 }];
  await mac.load("system", mac.daemon("default", here(mac)));
  const run = await mac.run(["--dry-run", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /usr\/local can be written by group admin/);
});

Deno.test("--check never runs the guard as root", async () => {
  await using mac = FakeMac.make({ uid: 0 });
  mac.putGuard(mac.guard);
  const text = here(mac).replace(
    "<array>",
    `<array><string>${mac.guard}</string><string>--run</string><string>default</string><string>--</string>`,
  );
  mac.daemon("default", text);
  await mac.run(["--check", "default"]);
  const asked = mac.log().filter((line) => line.includes("--version"));
  assert.ok(asked[0]?.startsWith("sudo -n -H -u #501 "), asked.join("\n"));
});

// ── with real owners and modes: the user puts his program in the guard's place, and it is refused ──

const user = ordinaryUser();

// What root has done, what the user then does (in the folder of the try), and the guard's path.
const SWAPS: [what: string, prepare: (root: string, uid: number, gid: number) => void, swap: string, path: string][] = [
  ["in his own folder", () => {}, "echo mine > users/guard", "users/guard"],
  ["through his own link", () => {}, "ln -s $PWD/users users/bin && echo mine > users/guard", "users/bin/guard"],
  [
    "behind a link of root's",
    (root) => Deno.symlinkSync(`${root}/users`, `${root}/safe/theirs`),
    "echo mine > users/guard",
    "safe/theirs/guard",
  ],
  [
    "in a file that he may write",
    (root) => Deno.chmodSync(`${root}/safe/guard`, 0o757),
    "echo mine > safe/guard",
    "safe/guard",
  ],
  [
    "in a file of his own",
    (root, uid, gid) => Deno.chownSync(`${root}/safe/guard`, uid, gid),
    "echo mine > safe/guard",
    "safe/guard",
  ],
  [
    "in a file of his group",
    (root, _, gid) => {
      Deno.chownSync(`${root}/safe/guard`, 0, gid);
      Deno.chmodSync(`${root}/safe/guard`, 0o775);
    },
    "echo mine > safe/guard",
    "safe/guard",
  ],
  [
    "in a folder that he may write",
    (root) => Deno.chmodSync(`${root}/safe`, 0o777),
    "rm -f safe/guard; echo mine > safe/guard",
    "safe/guard",
  ],
  [
    "by moving a folder above it",
    (root) => {
      Deno.mkdirSync(`${root}/users/up`);
      Deno.mkdirSync(`${root}/users/up/safe`);
      Deno.writeTextFileSync(`${root}/users/up/safe/guard`, "");
    },
    "mv users/up users/old && mkdir -p users/up/safe && echo mine > users/up/safe/guard",
    "users/up/safe/guard",
  ],
];
for (const [what, prepare, swap, path] of SWAPS) {
  Deno.test({
    name: `a plain user who can change the guard ${what} is found out${user ? "" : `: ${NO_ORDINARY_USER}`}`,
    ignore: user === null,
    fn: async () => {
      const { uid, gid } = user!;
      const host = await realHost({ canAsk: false, isVerbose: false });
      const root = Deno.realPathSync(Deno.makeTempDirSync());
      const judged = () => judgeWay(wayTo(host, `${root}/${path}`), ROOT).trouble;
      try {
        for (const dir of ["safe", "users"]) Deno.mkdirSync(`${root}/${dir}`);
        Deno.writeTextFileSync(`${root}/safe/guard`, "");
        for (const dir of [root, `${root}/safe`, `${root}/users`, `${root}/safe/guard`]) Deno.chmodSync(dir, 0o755);
        assert.equal(judgeWay(wayTo(host, `${root}/safe/guard`), ROOT).trouble, undefined);
        const refused = await user!.runAs("/bin/sh", ["-c", `cd ${root} && echo mine > safe/guard`]);
        assert.ok(!refused.success, "he could write what was judged to be safe");
        Deno.chownSync(`${root}/users`, uid, gid);
        prepare(root, uid, gid);
        const swapped = await user!.runAs("/bin/sh", ["-c", `cd ${root} && ${swap}`], { PATH: "/bin:/usr/bin" });
        assert.ok(swapped.success, new TextDecoder().decode(swapped.stderr));
        assert.equal(Deno.readTextFileSync(`${root}/${path}`), "mine\n");
        assert.notEqual(judged(), undefined);
      } finally {
        Deno.removeSync(root, { recursive: true });
      }
    },
  });
}
