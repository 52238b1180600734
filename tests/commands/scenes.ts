/** What the rows have in common: host agents, and processes that only look like something. */

import assert from "node:assert/strict";
import { type Instance, killChild, startAgent, waitForExit } from "../helpers/mod.ts";
import { asOwner } from "./desk.ts";
import { runAs, type Scene } from "./rows.ts";

/** What --install comes to where there is no launchd. */
export const NO_MAC = 1;
export async function agent(scene: Scene) {
  const started = scene.use(await startAgent(scene.k3s, asOwner));
  scene.words.set(String(started.pid), "AGENT");
  return started;
}

/** What a pretended process does: it may listen, lock a file, and be another user's. */
export interface Does {
  readonly socket?: string;
  readonly opens?: string;
  readonly uid?: number | undefined;
}
const PRETENDED =
  `use IO::Socket::UNIX; use IO::Socket::INET; $SIG{PIPE} = 'IGNORE'; my ($ps, $at, $file) = @ARGV; my $s;
if ($file ne '') { open FILE, '+>>', $file or die $!; flock FILE, 2 or die $! }
if ($at =~ m{^/}) { $s = IO::Socket::UNIX->new(Local => $at, Listen => 9) or die $! }
elsif ($at ne '') { $s = IO::Socket::INET->new(LocalAddr => $at, Listen => 9) or die $! }
$0 = $ps; print STDOUT $at =~ m{^[^/]} ? $s->sockport : ''; close STDOUT;
if (!$s) { sleep 1 while 1 }
while (my $c = $s->accept) { my $l = <$c>; print $c "HTTP/1.0 200 OK\\r\\n\\r\\n{}"; close $c }`;
/** A process that looks in ps like `command` and dies of a SIGTERM. */
export async function pretended(
  scene: Scene,
  command: string,
  { socket = "", opens = "", uid = asOwner.uid }: Does = {},
) {
  const child = new Deno.Command("/usr/bin/perl", {
    args: ["-e", PRETENDED, command, socket, opens],
    env: scene.home.mark,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
    ...uid === undefined ? {} : { uid, gid: uid },
  }).spawn();
  const port = await new Response(child.stdout).text();
  if (port !== "") scene.words.set(port, "PORT");
  scene.use({
    async [Symbol.asyncDispose]() {
      killChild(child);
      await child.status;
    },
  });
  scene.words.set(String(child.pid), "PID");
  return child.pid;
}
export const renamed = ({ dir }: Instance) => `/opt/x/limactl-2.1 hostagent --pidfile ${dir}/ha.pid k3s`;
export const isGone = async (scene: Scene) => {
  for (const [value, word] of scene.words) if (word === "PID") await waitForExit(Number(value));
};
/** Nothing is left that would keep the instance from its start. */
export const isClear = async (scene: Scene) => {
  const { status, stdout } = await runAs(scene, "--pre k3s");
  assert.equal(status, 0, stdout);
};

export async function isRunning(scene: Scene) {
  const { stdout, json } = await runAs(scene, "--status k3s");
  assert.equal(json().instances[0].state, "running", stdout);
}
/** Ends the pretended process. */
export async function end(scene: Scene): Promise<void> {
  for (const [value, word] of scene.words) if (word === "PID") Deno.kill(Number(value), "SIGTERM");
  await isGone(scene);
}
// Linux's lsof reads the name of a socket to its first blank.
export const folder = "a'ü;&$HOME";
