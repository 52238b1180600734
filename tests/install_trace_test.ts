/** What root really does, seen by the kernel: nothing that another user could have changed is opened, made or run. */

import assert from "node:assert/strict";
import { macTest, macWith, WHY_NO_MAC } from "./install_mac.ts";

const hasStrace = WHY_NO_MAC === undefined &&
  new Deno.Command("/bin/sh", { args: ["-c", "command -v strace"], stdout: "null" }).outputSync().success;
const test = hasStrace
  ? macTest
  : (name: string) => Deno.test({ name: `${name}: skipped: no strace`, ignore: true, fn() {} });

test("install, check and uninstall as root: no system call of root's names a path that another user could change", async () => {
  const { mac } = macWith("daemon", { quick: false });
  await using _ = mac;
  const trace = `${mac.root}/trace`;
  const calls =
    "open,openat,creat,execve,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir," +
    "clone,clone3,fork,vfork,mkdirat,rmdir,chmod,fchmodat,chown,lchown,fchownat,truncate";
  for (const role of ["--install", "--check", "--uninstall"]) {
    const run = await mac.run([
      "-f",
      "-qq",
      "-s",
      "400",
      "-e",
      `trace=${calls},setuid,setresuid`,
      "-o",
      trace,
      mac.source,
      role,
      "--yes",
      "default",
    ], {
      program: "/usr/bin/strace",
    });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    const text = Deno.readTextFileSync(trace);
    // A process has changed its user when setpriv has done its work; from then on its calls are that user's.
    const others = new Set<string>();
    const bad: string[] = [];
    let seen = 0;
    for (const line of text.split("\n")) {
      const [pid = ""] = line.split(" ", 1);
      if (/setresuid\(501|setuid\(501/.test(line)) others.add(pid);
      const child = /(?:clone3?|v?fork)\b.* = (\d+)$/.exec(line)?.[1];
      if (child !== undefined && others.has(pid)) others.add(child);
      if (others.has(pid)) continue;
      for (const [, path = ""] of line.matchAll(/"(\/[^"]*)"/g)) {
        seen++;
        if (path.startsWith(`${mac.root}/home/`)) bad.push(line);
      }
    }
    assert.ok(seen > 100, `only ${seen} paths`);
    assert.ok(others.size > 0 || role === "--uninstall", "no child has changed its user");
    assert.deepEqual(bad.filter((line) => !line.includes("execve(")), [], role);
  }
});
