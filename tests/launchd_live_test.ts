/**
 * install.ts with the real launchd: a throw-away agent of this user is installed, checked and uninstalled. Needs a Mac
 * with a login session, and a compiled guard in dist (`deno task compile`). The agent starts no instance: its `limactl`
 * is a script that sleeps.
 */

import assert from "node:assert/strict";
import { project } from "./helpers/paths.ts";

const onMac = Deno.build.os === "darwin";
const guard = `${project}/dist/lima-guard-${Deno.build.target}`;

/** Why it cannot be tried here; undefined where it can. */
function whyNot(): string | undefined {
  if (!onMac) return "needs a Mac";
  try {
    Deno.statSync(guard);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    return "needs a compiled guard: deno task compile";
  }
  return launchctl("print", `gui/${Deno.uid()}`).code === 0 ? undefined : "needs a login session";
}

function launchctl(...args: string[]): { code: number; text: string } {
  const { code, stdout } = new Deno.Command("launchctl", { args, stdin: "null", stderr: "null" }).outputSync();
  return { code, text: new TextDecoder().decode(stdout) };
}

const why = whyNot();

Deno.test({
  name: `real launchd: install, check, uninstall${why ? `: ${why}` : ""}`,
  ignore: why !== undefined,
  fn: async () => {
    const name = `lgtest${Deno.pid}`;
    const label = `io.lima-vm.autostart.${name}`;
    const target = `gui/${Deno.uid()}/${label}`;
    const file = `${Deno.env.get("HOME")}/Library/LaunchAgents/${label}.plist`;
    // A short path: sockets of an instance have at most 104 bytes.
    const home = Deno.realPathSync(Deno.makeTempDirSync({ dir: "/tmp", prefix: "lg" }));
    const run = (...args: string[]) => install(home, args);
    try {
      Deno.mkdirSync(`${home}/lima/${name}`, { recursive: true });
      Deno.writeTextFileSync(`${home}/lima/${name}/lima.yaml`, "vmType: vz\n");
      Deno.writeTextFileSync(`${home}/limactl`, "#!/bin/sh\nexec sleep 1000\n");
      Deno.chmodSync(`${home}/limactl`, 0o755);
      const text = plist(label, name, home);
      Deno.writeTextFileSync(file, text);
      assert.equal(launchctl("bootstrap", `gui/${Deno.uid()}`, file).code, 0);

      const installed = await run("--yes", "--guard-dir", `${home}/libexec`, name);
      assert.equal(installed.status, 0, installed.said);
      const print = launchctl("print", target).text;
      assert.match(print, /^\texit timeout = 60$/m);
      assert.ok(print.includes(`\t\t${home}/libexec/lima-guard\n\t\t--run\n\t\t${name}\n\t\t--\n`), print);
      const checked = await run("--check", name);
      assert.equal(checked.status, 0, checked.said);
      const again = await run("--guard-dir", `${home}/libexec`, name);
      assert.match(again.said, /guarded already/);

      const gone = await run("--uninstall", "--yes", name);
      assert.equal(gone.status, 0, gone.said);
      assert.equal(Deno.readTextFileSync(file), text);
      assert.ok(!launchctl("print", target).text.includes("--run"));
    } finally {
      launchctl("bootout", target);
      for (const path of [file, `${file}.before-lima-guard`, home]) {
        await Deno.remove(path, { recursive: true }).catch(() => {});
      }
    }
  },
});

async function install(home: string, args: string[]): Promise<{ status: number; said: string }> {
  const where = import.meta.resolve("jsr:@std/cli@1.0.29/parse-args");
  const flags = where.startsWith("file:")
    ? ["--no-lock", "--import-map", `${project}/tools/npm_only/import_map.json`]
    : [];
  const { code, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", ...flags, `${project}/install.ts`, "--lima-home", `${home}/lima`, ...args],
    stdin: "null",
  }).output();
  return { status: code, said: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
}

function plist(label: string, name: string, home: string): string {
  return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>${label}</string>
	<key>ProgramArguments</key>
	<array>
		<string>${home}/limactl</string>
		<string>start</string>
		<string>${name}</string>
		<string>--foreground</string>
	</array>
	<key>RunAtLoad</key>
	<true/>
	<key>StandardErrorPath</key>
	<string>launchd.stderr.log</string>
	<key>StandardOutPath</key>
	<string>launchd.stdout.log</string>
	<key>WorkingDirectory</key>
	<string>${home}/lima/${name}</string>
	<key>ProcessType</key>
	<string>Background</string>
</dict>
</plist>
`;
}
