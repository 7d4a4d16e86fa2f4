/** Loads all grammars and ends: started again and again by grammars.spec.mjs. */

import { loadParser } from "../lib/grammars.mjs";
import { LANGUAGES } from "../lib/languages.mjs";

let count = 0;
for (const { grammar } of LANGUAGES) if (await loadParser(grammar)) count++;
console.log(count);
