/**
 * install.ts and lima-guard with launchd, as a login agent and as a daemon with UserName; the stories are in
 * tests/mac/stories.ts. Each has two grounds. With the real launchd: needs a Mac and a compiled guard in dist (`deno task
 * compile`); the agent needs a login session, the daemon sudo without a password. With the stand-in for it, real
 * processes and lima-guard from source: needs Linux and root. The instance is none: tests/mac/throwaway.ts.
 */

import type { Ground } from "./mac/ground.ts";
import { HereGround } from "./mac/ground_here.ts";
import { RealMac, whyNotHere } from "./mac/ground_mac.ts";
import type { Domain } from "./mac/launchd.ts";
import { STORIES, tellOn } from "./mac/stories.ts";
import { WHY_NO_MAC } from "./install_mac.ts";

interface Where {
  readonly name: string;
  whyNot(domain: Domain): Promise<string | undefined>;
  make(): Promise<Ground>;
}

const WHERE: readonly Where[] = [
  { name: "real launchd", whyNot: whyNotHere, make: () => RealMac.make() },
  { name: "stand-in launchd", whyNot: () => Promise.resolve(WHY_NO_MAC), make: () => HereGround.make() },
];

for (const { name, whyNot, make } of WHERE) {
  for (const domain of ["agent", "daemon"] as const) {
    const why = await whyNot(domain);
    for (const story of STORIES.filter(({ domains }) => domains.includes(domain))) {
      Deno.test({
        name: `${name}, ${domain}: ${story.name}${why ? `: ${why}` : ""}`,
        ignore: why !== undefined,
        async fn() {
          await using ground = await make();
          await tellOn(ground, domain, story);
        },
      });
    }
  }
}
