/** What a child of root gets of a job in the session of a user, in each way to become that user. */

import type { Said } from "./launchd.ts";

export interface Reach {
  /** `groups` as `id -G` prints them: the first one is the user's own. */
  readonly account: { readonly uid: number; readonly groups: string };
  readonly target: string;
  readonly plist: string;
}

/** A changed uid and no more: `UID GROUPS COMMAND…`. */
const BECOME = 'my ($uid, $groups) = splice @ARGV, 0, 2; my ($gid) = split " ", $groups; $( = $gid; ' +
  '$) = "$gid $groups"; ($<, $>) = ($uid, $uid); exec @ARGV or die "$!\\n"';

/** From root's own hands to the user's own. `sudo -P` keeps the groups of root. */
export function waysTo({ uid, groups }: Reach["account"]): Readonly<Record<string, readonly string[]>> {
  const [gid = ""] = groups.split(" ");
  const perl = ["/usr/bin/perl", "-e", BECOME, String(uid)];
  return {
    "root itself": [],
    "asuser": ["launchctl", "asuser", String(uid)],
    "asuser, sudo -u": ["launchctl", "asuser", String(uid), "sudo", "-n", "-u", `#${uid}`],
    "sudo -u": ["sudo", "-n", "-u", `#${uid}`],
    "sudo -P -u": ["sudo", "-n", "-P", "-u", `#${uid}`],
    "uid with its groups": [...perl, groups],
    "uid with one group": [...perl, gid],
  };
}

/** The statuses of print, bootout and bootstrap for each way. `asRoot` runs a command as root. */
export async function askReach(
  asRoot: (...argv: string[]) => Promise<Pick<Said, "code">>,
  { account, target, plist }: Reach,
): Promise<string> {
  const found: string[] = [];
  const domain = target.slice(0, target.lastIndexOf("/"));
  for (const [name, way] of Object.entries(waysTo(account))) {
    const ask = async (...args: string[]) => (await asRoot(...way, "launchctl", ...args)).code;
    const [print, bootout] = [await ask("print", target), await ask("bootout", target)];
    await untilGone(asRoot, target);
    found.push(`${name}: print ${print}, bootout ${bootout}, bootstrap ${await ask("bootstrap", domain, plist)}`);
    // Where that was refused, the next way needs a job all the same.
    await asRoot("launchctl", "asuser", String(account.uid), "launchctl", "bootstrap", domain, plist);
  }
  return found.join("; ");
}

/** A second at most: a bootout that was refused leaves the job, which is an answer. */
async function untilGone(asRoot: (...argv: string[]) => Promise<Pick<Said, "code">>, target: string): Promise<void> {
  for (let n = 0; n < 10 && (await asRoot("launchctl", "print", target)).code === 0; n++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
