/**
 * A sample of each language with the chunks that come of it: `names` in order, and of those in `others` that name what is
 * around them, but begin no definition.
 */

/** @type {Record<string, { source: string, names: string[], others?: string[] }>} */
export const SAMPLES = {
  "a.ts": {
    source: `import { x } from "./x.js";

/** A store of things. */
export class Store<T> extends Base {
  readonly items = new Map<string, T>();

  /** Adds one more thing. */
  @logged()
  add(name: string, item: T): void {
    this.items.set(name, item);
    this.changed({ name, item, at: new Date() });
  }

  remove = (name: string): boolean => {
    const found = this.items.delete(name);
    return found && this.changed({ name });
  };
}

export interface Options {
  limit: number;
}

// Finds the best of all.
export const best = async (items: number[]) => {
  return items.toSorted()[0];
};`,
    names: ["", "Store", "Store.add", "Store.remove", "Options", "best"],
  },
  "a.tsx": {
    source: `export function Button({ label }: Props) {
  return <button className="b">{label}</button>;
}
export default () => <Button label="x" />;`,
    names: ["Button", "default"],
  },
  "a.cjs": {
    source: `"use strict";
const fs = require("node:fs");

exports.read = function (file) {
  return fs.readFileSync(file);
};

function* count() {
  yield 1;
}`,
    names: ["", "exports.read", "count"],
  },
  "a.py": {
    source: `"""A module."""
import os

class Parser(Base):
    """Reads things from a file, line by line, until there is nothing."""

    limit = 100

    # Called by everybody.
    @property
    def name(self):
        return os.path.basename(self.file) + " of " + str(self.limit)

    async def read(self, file):
        def inner():
            return 1
        return open(file).read() + str(inner()) + self.name

@cache
def main():
    pass`,
    names: ["", "Parser", "Parser.name", "Parser.read", "main"],
  },
  "a.rs": {
    source: `//! A crate.
use std::fmt;

/// A point of the plane.
#[derive(Debug)]
pub struct Point<T> { x: T, y: T }

impl<T> Display for Point<T> {
    /// As (x, y).
    fn fmt(&self, f: &mut Formatter) -> Result {
        write!(f, "{} {}", self.x, self.y)
    }

    fn other(&self) -> String {
        "a text that makes this impl long enough".to_owned()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn prints() { assert_eq!(Point { x: 1, y: 2 }.to_string(), "(1, 2)"); }
    #[test]
    fn prints_again() { assert_eq!(Point { x: 3, y: 4 }.to_string(), "(3, 4)"); }
}`,
    names: ["", "Point", "Point.fmt", "Point.other", "tests.prints", "tests.prints_again"],
  },
  "a.go": {
    source: `package main

import "fmt"

// Server serves.
type Server struct {
	name string
}

// Handle handles one request.
func (s *Server) Handle(r Request) error {
	return fmt.Errorf("no: %s", s.name)
}

func main() {
	fmt.Println("hello")
}`,
    names: ["", "Server", "Server.Handle", "main"],
  },
  "A.java": {
    source: `package a;

import java.util.List;

/** A store of things. */
@Component
public class Store<T> extends Base {
  private final List<T> items = new ArrayList<>();

  public Store(List<T> items) {
    this.items.addAll(items);
    this.changed("all", items.size(), "added when the store was made");
  }

  /** Adds one more. */
  @Override
  public void add(String name, T item) {
    items.add(item);
    changed(name, item, "added by add");
  }

  record Entry(String name, int number) {
    Entry {
      if (number < 0) throw new IllegalArgumentException("the number of an entry is never below zero");
    }
  }
}

@interface Marker {
  String value();
}

enum Color {
  RED, GREEN
}`,
    names: ["", "Store", "Store.Store", "Store.add", "Store.Entry", "Marker", "Color"],
  },
  "a.kt": {
    source: `package a

/** A store of things. */
@Serializable
data class Store(val items: MutableList<String>) : Base() {
    constructor(size: Int) : this(ArrayList(size)) {
        changed("all of them", size, "when the store was made for so many")
    }

    /** Adds one more. */
    fun add(name: String) {
        items.add(name)
        changed(name, items.size, "when one more of them was added")
    }

    companion object {
        fun empty(): Store {
            return Store(mutableListOf(), "a store that has nothing in it at all")
        }
    }
}

object Registry {
    val stores = mutableListOf<Store>()
}

fun String.store(): Store {
    return Store(mutableListOf(this))
}`,
    names: ["", "Store", "Store.constructor", "Store.add", "Store.Companion", "Registry", "store"],
    others: ["Store.Companion"],
  },
  "a.scala": {
    source: `package a

/** A store of things. */
class Store(items: Seq[String]) extends Base {
  /** Adds one more. */
  @tailrec
  final def add(name: String): Store = {
    changed(name, items.size, "when one more of them was added to it")
    new Store(items :+ name)
  }

  def remove(name: String): Store = {
    changed(name, items.size, "when one of them was taken away from it")
    new Store(items.filter(_ != name))
  }
}

object Store {
  def empty = new Store(Nil)
}

trait Named {
  def name: String
}`,
    names: ["", "Store", "Store.add", "Store.remove", "Store", "Named"],
  },
  "a.cs": {
    source: `using System;

namespace A.B
{
    /// <summary>A store of things.</summary>
    [Serializable]
    public class Store<T> : Base
    {
        public Store(int size)
        {
            Changed("all of them", size, "when the store was made for so many");
        }

        /// <summary>Adds one more.</summary>
        public void Add(string name, T item)
        {
            items.Add(item);
            Changed(name, item, "when one more of them was added to the store");
        }

        public int Count
        {
            get { return items.Count + other.Count + another.Count; }
        }

        public static Store<T> operator +(Store<T> left, Store<T> right)
        {
            return left.With(right, "what comes of two stores that are added");
        }
    }

    public interface INamed
    {
        string Name { get; }
    }

    public record Entry(string Name);
}`,
    names: [
      "",
      "A.B.Store",
      "A.B.Store.Store",
      "A.B.Store.Add",
      "A.B.Store.Count",
      "A.B.Store.operator +",
      "A.B.INamed",
      "A.B",
    ],
    others: ["A.B"],
  },
  "a.php": {
    source: `<?php
namespace A\\B;

/** A store of things. */
#[Entity]
class Store extends Base
{
    private array $items = [];

    /** Adds one more. */
    public function add(string $name, $item): void
    {
        $this->items[$name] = $item;
        $this->changed($name, $item, "when one more of them was added");
    }

    public function remove(string $name): void
    {
        unset($this->items[$name]);
        $this->changed($name, null, "when one of them was taken away");
    }
}

trait Named
{
    public string $name;
}

function store(): Store
{
    return new Store();
}`,
    names: ["", "Store", "Store.add", "Store.remove", "Named", "store"],
  },
  "a.rb": {
    source: `require "set"

module Things
  # A store of things.
  class Store < Base
    # Adds one more.
    def add(name, item)
      @items[name] = item
      changed(name, item, "when one more of them was added to the store")
    end

    def self.empty
      new({}, "a store that has nothing in it, and never had anything in it")
    end

    def remove(name)
      @items.delete(name)
      changed(name, nil, "when one of them was taken away from the store")
    end
  end
end

COLORS = {
  red: "#f00",
  green: "#0f0"
}.freeze`,
    names: ["", "Things.Store", "Things.Store.add", "Things.Store.empty", "Things.Store.remove", "COLORS"],
  },
  "a.c": {
    source: `#include <stdio.h>

#define LIMIT 100

#define LARGER(a, b) \\
  ((a) > (b) ? (a) : (b))

/* A store of things. */
struct store {
  int size;
  char **items;
};

typedef struct {
  int x;
} point_t;

enum color { RED, GREEN };

#ifdef DEBUG
/* Finds the best of all. */
static const char **best(struct store *store, int count) {
  return store->items + count;
}
#endif

static const char *names[] = {
  "red",
  "green",
};

int main(void) {
  return 0;
}`,
    names: ["", "LARGER", "store", "point_t", "color", "best", "names", "main"],
  },
  "a.cpp": {
    source: `#include <vector>

namespace things {

/// A store of things.
template <typename T>
class Store : public Base {
 public:
  explicit Store(int size) : size_(size) {
    changed("all of them", size, "when the store was made for so many of them");
  }

  ~Store() {
    changed("all of them", 0, "when the store was not needed any more at all");
  }

  // Adds one more.
  Store& operator+=(const T& item) {
    items_.push_back(item);
    return changed("one more", item, "when it was added to all the others");
  }

 private:
  int size_;
};

enum class Color {
  Red,
};

}  // namespace things

int *things::Store<int>::find(const std::string& name) {
  return nullptr;
}`,
    names: [
      "",
      "things.Store",
      "things.Store.Store",
      "things.Store.~Store",
      "things.Store.operator+=",
      "things.Store",
      "things.Color",
      "things.Store.find",
    ],
  },
  "a.sh": {
    source: `#!/bin/bash
set -e

# Adds one more.
add() {
  echo "$1"
}

function remove {
  rm "$1"
}

add "$@"`,
    names: ["", "add", "remove", ""],
  },
  "a.ps1": {
    source: `# Adds one more.
function Add-Item2 {
  Write-Output "one more"
}

class Store {
  [int] Count() {
    return 1
  }
}

enum Color {
  Red
}`,
    names: ["Add-Item2", "Store", "Color"],
  },
  "a.css": {
    source: `/* Buttons. */
.button, .link > a {
  color: red;
  background: linear-gradient(to right, rgba(255, 0, 0, 0.5), rgba(0, 255, 0, 0.5) 20%, rgba(0, 0, 255, 0.5) 30%);
}

@media (max-width: 600px) {
  .button { display: none; margin: 0 auto 1px 2px; padding: 0 1px 2px 3px; border: 1px solid #ff0000; outline: none }
}

@keyframes spin {
  from { transform: rotate(0deg) translate(10px, 20px) scale(0.5, 0.5) skew(10deg, 20deg); }
}`,
    names: [".button, .link > a", ".button, .link > a", "@media", "spin"],
    others: [".button, .link > a", "@media", "spin"],
  },
  "a.lua": {
    source: `local M = {}

-- Adds one more.
function M.add(name)
  return name
end

function M:remove(name)
  self.items[name] = nil
end

M.find = function(name)
  return M.items[name]
end

local function count()
  return #M.items
end

return M`,
    names: ["", "M.add", "M.remove", "M.find", "count", ""],
  },
  "a.zig": {
    source: `const std = @import("std");

/// A store of things.
pub const Store = struct {
    size: u32,

    /// Adds one more.
    pub fn add(self: *Store, name: []const u8) void {
        self.items.append(name);
        self.changed(name, self.size, "when one more of them was added");
    }

    pub fn remove(self: *Store, name: []const u8) void {
        self.items.remove(name);
        self.changed(name, self.size, "when one of them was taken away");
    }
};

test "adds" {
    try std.testing.expect(true);
}

pub fn main() void {
    std.debug.print("x", .{});
}`,
    names: ["", "Store", "Store.add", "Store.remove", "adds", "main"],
  },
  "a.hs": {
    source: `module Store where

import Data.List

-- | A store of things.
data Store = Store
  { items :: [String]
  }

class Named a where
  name :: a -> String

instance Named Store where
  name _ = "store"

-- | Adds one more.
add :: String -> Store -> Store
add "" store = store
add item store = store { items = item : items store }

main :: IO ()
main = do
  print 1`,
    names: ["", "Store", "Named", "Store", "add", "main"],
  },
  "a.ex": {
    source: `defmodule Things.Store do
  @moduledoc "A store of things."

  @doc """
  Adds one more.
  """
  @spec add(t, term) :: t
  def add(store, item) when is_binary(item) do
    Map.put(store, item, 1)
  end

  def add(store, item) do
    Map.put(store, item, 2)
  end

  defp secret do
    Map.new("a private function that says something long about what it does")
  end

  defmacro twice(code) do
    quote do: unquote(code) ++ unquote(code) ++ "something long about what it does"
  end
end

defimpl Enumerable, for: Things.Store do
  def count(store) do
    {:ok, 1}
  end
end`,
    names: [
      "Things.Store",
      "Things.Store.add",
      "Things.Store.add",
      "Things.Store.secret",
      "Things.Store.twice",
      "Things.Store",
    ],
  },
  "a.swift": {
    source: `import Foundation

/// Sends requests.
@MainActor
open class Session: Base {
    let size: Int
    /// Makes one.
    public init(size: Int) {
        self.size = size
        changed("all of them", size, "when the session was made for so many")
    }

    /// Sends one request.
    @discardableResult
    open func request(_ url: String) async throws -> Response {
        let found = await send(url, size, "when one more of them was sent to it")
        return found
    }

    var isBusy: Bool {
        return size > 0 && other.size > 0 && another.size > 0 && last.size > 0
    }
    func one() -> Int { 1 }
}

extension Session {
    class func shared() -> Session {
        Session(size: 1)
    }
}

protocol Named {
    var name: String { get }
}

func helper() {
    print("x")
}`,
    names: ["", "Session", "Session.init", "Session.request", "Session.isBusy", "Session", "Named", "helper"],
  },
  "a.dart": {
    source: `import 'x.dart';

/// A button.
class Button extends Widget {
  final String label;

  @override
  Widget build(BuildContext context) {
    return Text(label, style: TextStyle(color: red, size: 12, weight: bold, font: "sans"));
  }

  Future<void> press(int times) async {
    for (var i = 0; i < times; i++) {
      await changed("one more time", i, "when it was pressed by somebody");
    }
  }
}

void main() {
  runApp(Button());
}`,
    names: ["", "Button", "Button.build", "Button.press", "main"],
  },
  "a.m": {
    source: `#import "Store.h"

@interface Store ()
@property int size;
@end

@implementation Store
// Adds one more.
- (void)addItem:(id)item forName:(NSString *)name {
  [self.items setObject:item forKey:name];
  [self changed:name item:item text:@"added"];
}

+ (instancetype)empty {
  return [[Store alloc] initWithSize:0 text:@"a store that has nothing in it at all, and never had"];
}
@end`,
    names: ["", "Store", "Store", "Store.addItem", "Store.empty"],
  },
  "a.pl": {
    source: `package Store;
use strict;

# Adds one more.
sub add {
    my ($self, $name) = @_;
    return $name;
}

sub remove {
    return 1;
}
1;`,
    names: ["Store", "add", "remove"],
  },
  "a.r": {
    source: `library(x)

# Adds one more.
add <- function(name, item) {
  name + item
}

remove = function(name) {
  name
}`,
    names: ["", "add", "remove"],
  },
  "a.jl": {
    source: `module Things

"A store."
struct Store
    size::Int
end

function add(store, item)
    push!(store.items, item)
end

area(x) = x^2

end`,
    names: ["Things", "Store", "add", "area"],
  },
  "a.clj": {
    source: `(ns things.store
  (:require [clojure.string :as s]))

;; Adds one more.
(defn add
  [store item]
  (conj store item))

(def ^:private limit
  100)`,
    names: ["things.store", "add", "limit"],
  },
  "a.ml": {
    source: `open Printf

(* A store of things. *)
type store = {
  size : int;
}

let rec add store item =
  match item with
  | None -> store
  | Some x -> add store x

module Named = struct
  let name = "x"
end`,
    names: ["", "store", "add", "Named"],
  },
  "a.erl": {
    source: `-module(store).
-export([add/2]).

%% Adds one more.
-spec add(term(), term()) -> term().
add(Store, undefined) ->
    Store;
add(Store, Item) ->
    [Item | Store].

remove(Store) ->
    Store.`,
    names: ["store", "add", "remove"],
  },
  "a.nim": {
    source: `import strutils

type
  Store* = object
    size: int

# Adds one more.
proc add*(store: Store, item: string) =
  echo item`,
    names: ["", "Store", "add"],
  },
  "a.sql": {
    source: `-- Users of the shop.
CREATE TABLE IF NOT EXISTS users (
  id INT PRIMARY KEY
);

create or replace function add_user(name text) returns void as $$
begin
  insert into users values (1);
end;
$$;`,
    names: ["users", "add_user"],
  },
  "a.proto": {
    source: `syntax = "proto3";

// A store of things.
message Store {
  int32 size = 1;
}

service Stores {
  rpc Add (Store) returns (Store);
}`,
    names: ["", "Store", "Stores"],
  },
  "a.graphql": {
    source: `type Store {
  size: Int
}

extend type Query {
  stores: [Store]
}`,
    names: ["Store", "Query"],
    others: ["Query"],
  },
  "a.tf": {
    source: `resource "aws_instance" "web" {
  ami = "x"
}

variable "name" {
  type = string
}`,
    names: ["aws_instance web", "name"],
  },
  "a.vue": {
    source: `<template>
  <div>text</div>
</template>
<script>
function add(name) {
  return name;
}
</script>`,
    names: ["", "add"],
  },
  "a.md": {
    source: `---
title: Front matter
---

Words before the first heading.

# Guide

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it.

## Install

\`\`\`sh
# no heading
npm install
\`\`\`
Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it.

Use
---

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it.`,
    names: ["", "Guide", "Guide.Install", "Guide.Install", "Use"],
    others: ["Guide", "Guide.Install", "Use"],
  },
  "a.rst": {
    source: `Guide
=====

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it.

Install
-------

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it.`,
    names: ["Guide", "Guide.Install"],
    others: ["Guide", "Guide.Install"],
  },
  "a.adoc": {
    source: `= Guide

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. 

== Install

Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. Something to read about it. `,
    names: ["Guide", "Guide.Install"],
    others: ["Guide", "Guide.Install"],
  },
  "a.yml": {
    source: `name: CI
on: push

# What is done.
jobs:
  build:
    runs-on: many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row
env:
  A: many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row`,
    names: ["", "jobs", "env"],
    others: ["jobs", "env"],
  },
  "a.toml": {
    source: `name = "x"

[dependencies]
serde = "many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row"

[[bin]]
path = "many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row many words in a row"`,
    names: ["", "dependencies", "bin"],
    others: ["dependencies", "bin"],
  },
  "a.f90": {
    source: `MODULE things
CONTAINS
  SUBROUTINE add(x)
    x = 1
  END SUBROUTINE
END MODULE`,
    names: ["things"],
  },
};
