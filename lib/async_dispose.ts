// Node 20.0 to 20.4 do not have the symbol yet; `await using` cannot be used there, everything else can.
export const asyncDispose: typeof Symbol.asyncDispose = Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose");
