/** An instance that is none: a program that looks like Lima's host agent, for tests of the real launchd. */

import type { Domain } from "./launchd.ts";

export interface Throwaway {
  readonly lima: string;
  readonly name: string;
  readonly dir: string;
  readonly limactl: string;
}

/**
 * Makes ROOT/lima/NAME and ROOT/limactl. `limactl start NAME --foreground` becomes, in the same process, what `ps` shows
 * as a host agent; it writes ha.pid and vz.pid, says that its guest is up, and needs `lingerS` seconds to end after SIGTERM or SIGINT: the number
 * in ROOT/linger, read when it is asked to end.
 */
export function writeThrowaway(root: string, name: string, lingerS: number): Throwaway {
  const [lima, limactl] = [`${root}/lima`, `${root}/limactl`];
  const dir = `${lima}/${name}`;
  Deno.mkdirSync(dir, { recursive: true });
  Deno.writeTextFileSync(`${dir}/lima.yaml`, "vmType: vz\n");
  // The shell reads this on its standard input, so that argv[0] is all that ps shows. Words of bash 3.2 only.
  Deno.writeTextFileSync(`${root}/linger`, String(lingerS));
  const agent = `stop() { sleep "$(cat '${root}/linger')"; rm -f '${dir}/ha.pid' '${dir}/vz.pid'; exit 0; }
trap stop TERM INT
echo $$ >'${dir}/ha.pid'
echo $$ >'${dir}/vz.pid'
echo '{"status":{"running":true}}' >'${dir}/ha.stdout.log'
while :; do sleep 0.2; done
`;
  Deno.writeTextFileSync(`${root}/agent.sh`, agent);
  const words = `${limactl} hostagent --pidfile ${dir}/ha.pid --socket ${dir}/ha.sock ${name}`;
  const script = `#!/bin/bash
if [ "$1" = --version ]; then echo 'limactl version 2.2.0'; exit; fi
[ "$1" = start ] || exit 1
exec -a '${words}' /bin/bash <'${root}/agent.sh'
`;
  Deno.writeTextFileSync(limactl, script);
  Deno.chmodSync(limactl, 0o755);
  return { lima, name, dir, limactl };
}

/** The same without a host agent: its `limactl start` is a process that ends at the first signal and writes nothing. */
export function writeBare(root: string, name: string): Throwaway {
  const made = writeThrowaway(root, name, 0);
  const script = `#!/bin/bash
if [ "$1" = --version ]; then echo 'limactl version 2.2.0'; exit; fi
exec sleep 1000
`;
  Deno.writeTextFileSync(made.limactl, script);
  return made;
}

/** The plist that Lima 2.2 would have written; `user` is for a daemon. */
export function plistOf({ name, dir, limactl }: Throwaway, domain: Domain, label: string, user: string): string {
  const userName = domain === "daemon" ? `\t<key>UserName</key>\n\t<string>${user}</string>\n` : "";
  return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>${label}</string>
	<key>ProgramArguments</key>
	<array>
		<string>${limactl}</string>
		<string>start</string>
		<string>${name}</string>
		<string>--foreground</string>
	</array>
${userName}	<key>RunAtLoad</key>
	<true/>
	<key>StandardErrorPath</key>
	<string>launchd.stderr.log</string>
	<key>StandardOutPath</key>
	<string>launchd.stdout.log</string>
	<key>WorkingDirectory</key>
	<string>${dir}</string>
	<key>ProcessType</key>
	<string>Background</string>
</dict>
</plist>
`;
}

/** The arguments of lima-guard for the instance, so that they can be tried without a Mac. */
export function commandsOf({ lima, name }: Throwaway, guardDir: string) {
  const home = ["--lima-home", lima, name];
  const install = ["--install", "--yes", "--guard-dir", guardDir];
  return {
    install: [...install, ...home],
    again: [...install, "--json", ...home],
    twoMinutes: [...install, "--exit-timeout", "120", ...home],
    fiveMinutes: [...install, "--exit-timeout", "300", ...home],
    restart: [...install, "--restart", ...home],
    check: ["--check", ...home],
    uninstall: ["--uninstall", "--yes", ...home],
    stop: ["--stop", ...home],
    status: ["--status", "--json", ...home],
  } as const;
}
