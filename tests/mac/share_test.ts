/** tests/mac/share with stand-ins that only note how they were called; and the questions about a volume, on any machine. */

import assert from "node:assert/strict";
import { project } from "../helpers/paths.ts";
import { askVolume } from "./volume.ts";

async function share(args: readonly string[], failing = ""): Promise<{ code: number; said: string; calls: string[] }> {
  const root = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg-" }));
  try {
    const tool = (name: string, text: string) =>
      Deno.writeTextFileSync(`${root}/${name}`, `#!/bin/sh\n${text}\n`, { mode: 0o755 });
    const noted = (name: string) => `echo "${name} $*" >>'${root}/calls'; case "${name} $*" in ${failing || "-"}*)`;
    tool("sudo", `shift; ${noted("sudo")} echo no >&2; exit 5;; "sudo rm"*) exec "$@";; esac`);
    for (const name of ["mount_smbfs", "umount"]) tool(name, `${noted(name)} echo "${name}: no" >&2; exit 68;; esac`);
    const folder = `${root}/folder`;
    const { code, stdout, stderr } = await new Deno.Command("/bin/sh", {
      args: [`${project}/tests/mac/share`, ...args.map((arg) => arg === "FOLDER" ? folder : arg)],
      env: { SHARE_PATH: root, SHARE_PAUSE: "0" },
      stdin: "null",
    }).output();
    const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    const calls = Deno.readTextFileSync(`${root}/calls`).replaceAll(root, "").trim().split("\n");
    return { code, said: text.replaceAll(root, ""), calls };
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
}

const MAKE = ["make", "FOLDER", "lgother", "secret"];

Deno.test("share makes a share and mounts it, and prints where", async () => {
  const { code, said, calls } = await share(MAKE);
  assert.deepEqual([code, said], [0, "/folder/mounted\n"]);
  assert.deepEqual(calls.map((call) => call.split(" ").slice(0, 2).join(" ")), [
    ...["sudo pwpolicy", "sudo dscl", "sudo sharing", "sudo launchctl", "sudo launchctl"],
    "mount_smbfs -N",
  ]);
});

for (
  const [failing, words] of [["sudo\\ sharing\\ -a", "share the folder: status 5: no"], ["mount_smbfs", "mount: "]]
) {
  Deno.test(`share says which step failed, and takes back what it has done: ${failing}`, async () => {
    const { code, said, calls } = await share(MAKE, failing);
    assert.equal(code, 1);
    assert.ok(said.startsWith(`share: ${words}`), said);
    assert.deepEqual(calls.slice(-4).map((call) => call.split(" ").slice(0, 3).join(" ")), [
      "umount -f /folder/mounted",
      "sudo sharing -r",
      "sudo launchctl bootout",
      "sudo rm -rf",
    ]);
  });
}

Deno.test("a volume: synced lines and locks; what cannot be done is an answer", async () => {
  const dir = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    assert.match(await askVolume(dir), /^\d+\.\d ms a synced line, a lock keeps a second process out$/);
    assert.deepEqual([...Deno.readDirSync(dir)], []);
    assert.match(await askVolume(`${dir}/none`), /^no synced line: NotFound: .*, no lock: NotFound: /);
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
});
