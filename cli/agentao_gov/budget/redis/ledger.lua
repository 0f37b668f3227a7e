-- The ledger in Redis: every step is one call of this script, so it happens as a whole or not at all.
-- KEYS[1] is the prefix of all keys, with a hash tag; ARGV[1] the request as JSON. Answers with JSON.
-- Amounts of tokens stay below 2^53, where Lua's numbers are exact; sums of cost are kept by HINCRBY, which is
-- exact to 2^63. The decision is that of `core.py`; one contract suite holds all three stores.
-- Redis does not undo what a script wrote before it failed: what can be missing is looked at before the first write.

local p, a = KEYS[1], cjson.decode(ARGV[1])
local meta_key, waiters_key = p .. 'meta', p .. 'waiters'

local function int(n) return string.format('%.0f', n) end
local function value(v) if v == cjson.null then return nil end return v end

local meta = redis.call('HMGET', meta_key, 'id', 'last', 'hash', 'high', 'broken')
if not meta[1] and a.op == 'create' then
  meta = {a.ledger, '0', string.rep('0', 40), '0'}
  redis.call('HSET', meta_key, 'id', a.ledger)
end
if not meta[1] or (a.op ~= 'create' and meta[1] ~= a.ledger) then return cjson.encode({error = 'lost'}) end
local last, hash, high = tonumber(meta[2]), meta[3], tonumber(meta[4])
if last < a.seen then return cjson.encode({error = 'older', last = last}) end
-- Once something was found to be gone, nothing is decided on what is left; only who looks is answered.
if meta[5] and a.op ~= 'look' then return cjson.encode({error = 'vanished', what = meta[5]}) end

local now = value(a.now)
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
if now < high then now = high end

-- The time of the last entry is the ledger's: a look, or a beat, while the clock is ahead moves nobody to another day.
local function append(kind, id, lines, post, note, owner)
  local names = #lines == 0 and '[]' or cjson.encode(lines)
  local text = '[' .. int(now) .. ',"' .. kind .. '",' .. cjson.encode(id) .. ',' .. cjson.encode(owner or a.owner) .. ','
    .. names .. ',' .. int(post.used or 0) .. ',' .. int(post.reserved or 0) .. ',' .. int(post.estimated or 0) .. ','
    .. int(post.granted or 0) .. ',' .. int(post.cost or 0) .. ',' .. int(post.unpriced or 0) .. ','
    .. cjson.encode(note or '') .. ']'
  last, hash, high = last + 1, redis.sha1hex(hash .. text), now
  redis.call('RPUSH', p .. 'journal', hash .. text)
end

local function reply(answer)
  redis.call('HSET', meta_key, 'last', int(last), 'hash', hash, 'high', int(high))
  answer.last, answer.now = last, now
  answer.waiting_calls = redis.call('ZCARD', waiters_key)
  return cjson.encode(answer)
end

-- Raised where a key is gone that the ledger did not let go of: evicted, deleted, or lost by the server.
local Vanished = {}
local function vanished(what) error(setmetatable({what = what}, Vanished)) end

-- ── balances: on the server a balance is called a line ────────────────────────────────────────────

local function line_key(name) return p .. 'line:' .. name end

local function is_turn(name) return string.sub(name, 1, 5) == 'turn:' end

local FIELDS = {'limit', 'granted', 'used', 'reserved', 'warned', 'kind', 'key', 'timezone', 'window',
                'estimated', 'cost', 'unpriced'}

-- The balance of that name; nil where there is none yet, or where it was a turn's that had its time.
local function find_balance(name)
  local f = redis.call('HMGET', line_key(name), unpack(FIELDS))
  if not f[6] then
    if redis.call('SISMEMBER', p .. 'lines', name) == 1 then
      local until_ms = is_turn(name) and redis.call('ZSCORE', p .. 'resting', name)
      if not until_ms or tonumber(until_ms) > now then vanished('balance ' .. name) end
    end
    return nil
  end
  local limit = f[1] ~= '' and tonumber(f[1]) or nil
  return {name = name, limit = limit, granted = tonumber(f[2]), used = tonumber(f[3]), reserved = tonumber(f[4]),
          warned = tonumber(f[5]), kind = f[6], key = f[7], timezone = f[8], window = f[9], estimated = tonumber(f[10]),
          cost = f[11], unpriced = tonumber(f[12]), effective = limit and limit + tonumber(f[2])}
end

-- A balance that a call posts to: it has to be there.
local function load_balance(name)
  return find_balance(name) or vanished('balance ' .. name)
end

local function load_balances(names)
  local found = {}
  for i, name in ipairs(names) do found[i] = load_balance(name) end
  return found
end

-- A balance as it would be under this request's limit, without writing: a refusal leaves no trace.
local function view_balance(s)
  local balance = find_balance(s.name) or {name = s.name, kind = s.kind, key = s.key, timezone = s.timezone,
    window = s.window, granted = 0, used = 0, reserved = 0, estimated = 0, cost = '0', unpriced = 0, warned = 0,
    new = true}
  local limit = value(s.limit)
  balance.changed = balance.new or balance.limit ~= limit
  balance.limit, balance.effective = limit, limit and limit + balance.granted or nil
  return balance
end

-- Keeps what was viewed: a balance that was not there, or a changed limit.
local function keep_balance(balance)
  if not balance.changed then return end
  local key, limit = line_key(balance.name), balance.limit and int(balance.limit)
  if balance.new then
    redis.call('HSET', key, 'granted', 0, 'used', 0, 'reserved', 0, 'estimated', 0, 'cost', 0, 'unpriced', 0,
      'warned', 0, 'kind', balance.kind, 'key', balance.key, 'timezone', balance.timezone, 'window', balance.window)
    redis.call('HINCRBY', meta_key, 'balances', redis.call('SADD', p .. 'lines', balance.name))
    append('line', balance.name, {}, {}, balance.name)
  end
  redis.call('HSET', key, 'limit', limit or '')
  append('limit', balance.name, {}, {}, limit or 'None')
end

-- Lets go of a balance.
local function forget_balance(name)
  redis.call('DEL', line_key(name))
  redis.call('ZREM', p .. 'resting', name)
  if redis.call('SREM', p .. 'lines', name) == 1 then redis.call('HINCRBY', meta_key, 'balances', -1) end
end

local function post_balances(names, post)
  for _, name in ipairs(names) do
    local key = line_key(name)
    for _, field in ipairs({'used', 'reserved', 'estimated', 'cost', 'unpriced'}) do
      if (post[field] or 0) ~= 0 then redis.call('HINCRBY', key, field, int(post[field])) end
    end
  end
end

local function stale()
  for _, s in ipairs(a.scopes or {}) do
    if now < s.start_ms or now >= s.end_ms then return true end
  end
  return false
end

local function describe(balance)
  return {kind = balance.kind, key = balance.key, timezone = balance.timezone, window = balance.window,
          limit = balance.effective, used = balance.used, reserved = balance.reserved, estimated = balance.estimated,
          granted = balance.granted, cost = balance.cost, unpriced = balance.unpriced, name = balance.name}
end

-- ── calls ─────────────────────────────────────────────────────────────────────────────────────────

local function call_key(id) return p .. 'call:' .. id end

local function load_call(id)
  local f = redis.call('HMGET', call_key(id), 'owner', 'lines', 'state', 'held_prompt', 'held_output', 'used',
    'estimated', 'cost', 'unpriced', 'price_prompt', 'price_completion', 'windows')
  if not f[1] then
    if redis.call('SISMEMBER', p .. 'open:' .. a.owner, id) == 1 then vanished('reservation ' .. id) end
    return nil
  end
  local call = {id = id, owner = f[1], names = cjson.decode(f[2]), state = f[3], held_prompt = tonumber(f[4]),
    held_output = tonumber(f[5]), used = tonumber(f[6]), estimated = tonumber(f[7]), cost = tonumber(f[8]),
    unpriced = tonumber(f[9]), windows = cjson.decode(f[12])}
  if f[10] and f[10] ~= '' then call.price = {tonumber(f[10]), tonumber(f[11])} end
  call.open = call.state == 'reserved' or call.state == 'dispatched'
  call.held = call.open and call.held_prompt + call.held_output or 0
  return call
end

local function reservation(call)
  return {id = call.id, prompt = call.held_prompt, output = call.held_output, windows = call.windows,
          state = call.state}
end

local function hold(r, owner, balances, output)
  local names, windows = {}, {}
  for i, balance in ipairs(balances) do names[i], windows[i] = balance.name, balance.window end
  local pp, pc = value(r.price_prompt), value(r.price_completion)
  redis.call('HSET', call_key(r.id), 'owner', owner, 'lines', cjson.encode(names), 'windows', cjson.encode(windows),
    'state', 'reserved', 'held_prompt', int(r.prompt), 'held_output', int(output), 'used', 0, 'estimated', 0,
    'cost', 0, 'unpriced', 0, 'price_prompt', pp and int(pp) or '', 'price_completion', pc and int(pc) or '')
  redis.call('SADD', p .. 'open:' .. owner, r.id)
  for _, name in ipairs(names) do
    if is_turn(name) then
      redis.call('PERSIST', line_key(name))
      redis.call('ZREM', p .. 'resting', name)
    end
  end
  -- An owner that its neighbours gave up, and that came back, is watched again from its first reservation on.
  redis.call('ZADD', p .. 'beats', 'NX', now, owner)
  local post = {reserved = r.prompt + output}
  post_balances(names, post)
  local price = pp and int(pp) .. ' ' .. int(pc) or 'unpriced'
  append('reserve', r.id, names, post, int(r.prompt) .. ' ' .. int(output) .. ' ' .. price, owner)
  return {reservation = {id = r.id, prompt = r.prompt, output = output, windows = windows, state = 'reserved'}}
end

-- As `admission.admit`: nil when granted and the output, else the answer and the positions that block.
local function admit(balances, r)
  local least, grant, blocking, impossible, exhausted = r.prompt + r.output_min, r.output_max, {}, {}, {}
  for i, balance in ipairs(balances) do
    if balance.effective then
      local free = balance.effective - balance.used - balance.reserved
      if free - r.prompt < grant then grant = free - r.prompt end
      if least > free then
        blocking[#blocking + 1] = i
        if least > balance.effective then impossible[#impossible + 1] = i
        elseif least > balance.effective - balance.used then exhausted[#exhausted + 1] = i end
      end
    end
  end
  if #impossible > 0 then return 'impossible', impossible end
  if #exhausted > 0 then return 'exhausted', exhausted end
  if #blocking > 0 then return 'wait', blocking end
  return nil, grant
end

-- `behind`: others wait already, so what is not refused at once has to queue.
local function attempt(r, owner, behind)
  local balances = {}
  for i, s in ipairs(a.scopes) do balances[i] = view_balance(s) end
  local answer, extra = admit(balances, r)
  if behind and (not answer or answer == 'wait') then return {queued = true} end
  if not answer then
    for _, balance in ipairs(balances) do keep_balance(balance) end
    return hold(r, owner, balances, extra)
  end
  return {answer = answer, blocking = extra, balance = describe(balances[extra[1]])}
end

local function enqueue()
  if redis.call('ZSCORE', waiters_key, a.request.id) then return end
  redis.call('ZADD', waiters_key, redis.call('HINCRBY', meta_key, 'arrivals', 1), a.request.id)
  redis.call('HSET', p .. 'waiting', a.request.id, a.stored)
end

local function leave(id)
  if redis.call('ZREM', waiters_key, id) == 0 then return false end
  redis.call('HDEL', p .. 'waiting', id)
  redis.call('HINCRBY', meta_key, 'answered', 1)
  if redis.call('ZCARD', waiters_key) == 0 then redis.call('DEL', p .. 'served') end
  return true
end

-- The soft threshold that the balance passed since the last one reported, as `balance.crossed`.
local function crossed(balance)
  if not balance.effective then return nil end
  local passed
  for _, share in ipairs(a.warn_at) do
    local mark = math.floor(share * 1000 + 0.5)
    if mark > balance.warned and balance.used >= share * balance.effective then passed = share end
  end
  if not passed then return nil end
  redis.call('HSET', line_key(balance.name), 'warned', int(math.floor(passed * 1000 + 0.5)))
  local crossing = describe(balance)
  crossing.threshold = passed
  return crossing
end

-- Closes a call: `state` is its last one; prompt and completion what is posted (nil for a release).
local function finish(call, kind, state, prompt, completion, estimated)
  local balances = load_balances(call.names)
  local used = (prompt or 0) + (completion or 0)
  local post = {reserved = -call.held, used = 0, estimated = 0, cost = 0, unpriced = 0}
  if prompt then
    local cost = call.price and prompt * call.price[1] + completion * call.price[2] or 0
    post.used, post.estimated = used - call.used, estimated - call.estimated
    post.cost, post.unpriced = cost - call.cost, (call.price and 0 or used) - call.unpriced
  end
  redis.call('HSET', call_key(call.id), 'state', state, 'used', int(call.used + post.used),
    'estimated', int(call.estimated + post.estimated), 'cost', int(call.cost + post.cost),
    'unpriced', int(call.unpriced + post.unpriced))
  redis.call('SREM', p .. 'open:' .. call.owner, call.id)
  redis.call('PEXPIRE', call_key(call.id), a.keep_ms)
  post_balances(call.names, post)
  local crossings = {}
  for _, balance in ipairs(balances) do
    balance.used, balance.reserved = balance.used + post.used, balance.reserved + post.reserved
    if post.used ~= 0 then crossings[#crossings + 1] = crossed(balance) end
    if is_turn(balance.name) and balance.reserved == 0 then
      redis.call('PEXPIRE', line_key(balance.name), a.keep_ms)
      redis.call('ZADD', p .. 'resting', now + a.keep_ms, balance.name)
    end
  end
  append(kind, call.id, call.names, post)
  return {posted = true, crossings = crossings, freed = post.used < 0 or call.held > 0}
end

-- ── steps ─────────────────────────────────────────────────────────────────────────────────────────

local steps = {}

function steps.create()
  if last == 0 then append('open', '', {}, {}, a.ledger) end
  -- A ledger of an older version has not counted its balances.
  redis.call('HSETNX', meta_key, 'balances', redis.call('SCARD', p .. 'lines'))
  return {ledger = meta[1]}
end

function steps.reserve()
  local call = load_call(a.request.id)
  if call then return {reservation = reservation(call)} end
  if stale() then return {stale = true} end
  local behind = redis.call('ZCARD', waiters_key) > 0 and not a.direct
  local answer = attempt(a.request, a.owner, behind)
  if answer.queued or answer.answer == 'wait' then enqueue() end
  return answer
end

-- Lets waiting calls try in the order given. A blocked one claims the scopes that block it, as in `queue.serve`.
function steps.serve()
  for _, ticket in ipairs(a.tickets) do
    a.scopes = ticket.scopes
    if stale() then return {stale = true} end
  end
  local claimed, answered = {}, {}
  for _, ticket in ipairs(a.tickets) do
    local open = redis.call('ZSCORE', waiters_key, ticket.request.id)
    for _, s in ipairs(ticket.scopes) do
      if claimed[s.kind .. ':' .. s.key] then open = false end
    end
    if open then
      a.scopes = ticket.scopes
      local answer = attempt(ticket.request, ticket.waiter)
      if answer.answer == 'wait' then
        for _, position in ipairs(answer.blocking) do
          claimed[ticket.scopes[position].kind .. ':' .. ticket.scopes[position].key] = true
        end
      else
        if not answer.answer then
          local number = redis.call('HINCRBY', meta_key, 'servings', 1)
          redis.call('HSET', p .. 'served', ticket.tenant, number, ticket.user, number)
        end
        leave(ticket.request.id)
        answered[#answered + 1] = ticket.request.id
      end
    end
  end
  return {answered = answered}
end

function steps.withdraw()
  if leave(a.id) then return {freed = true} end
  local call = load_call(a.id)
  if call and call.state == 'reserved' then return finish(call, 'release', 'released') end
  return {freed = false}
end

function steps.dispatch()
  local call = load_call(a.id)
  if not call then return {error = 'unknown'} end
  if call.state == 'dispatched' then return {} end
  if call.state ~= 'reserved' then return {error = 'state', state = call.state} end
  redis.call('HSET', call_key(a.id), 'state', 'dispatched')
  append('dispatch', a.id, call.names, {})
  return {}
end

function steps.extend()
  local call = load_call(a.id)
  if not call then return {error = 'unknown'} end
  local more = call.open and a.tokens or 0
  for _, balance in ipairs(load_balances(call.names)) do
    if balance.effective then more = math.min(more, balance.effective - balance.used - balance.reserved) end
  end
  if more <= 0 then return {more = 0} end
  redis.call('HSET', call_key(a.id), 'held_output', int(call.held_output + more))
  post_balances(call.names, {reserved = more})
  append('extend', a.id, call.names, {reserved = more})
  return {more = more}
end

function steps.settle()
  local call = load_call(a.id)
  if not call then return {error = 'unknown'} end
  if call.state == 'settled' then return {posted = false} end
  return finish(call, call.open and 'settle' or 'correct', 'settled', a.prompt, a.completion, a.estimated)
end

function steps.charge()
  local call = load_call(a.id)
  if not call then return {error = 'unknown'} end
  if not call.open then return {posted = false} end
  return finish(call, 'charge', 'charged_estimate', a.prompt, a.completion, a.prompt + a.completion)
end

function steps.release()
  local call = load_call(a.id)
  if not call then return {error = 'unknown'} end
  if not call.open then return {posted = false} end
  return finish(call, 'release', 'released')
end

function steps.grant()
  if stale() then return {stale = true} end
  local balance = view_balance(a.scopes[1])
  keep_balance(balance)
  redis.call('HINCRBY', line_key(balance.name), 'granted', int(a.tokens))
  append('grant', '', {balance.name}, {granted = a.tokens})
  balance = load_balance(balance.name)
  local still = 0
  for _, share in ipairs(a.warn_at) do
    if balance.effective and balance.used >= share * balance.effective then still = math.floor(share * 1000 + 0.5) end
  end
  if still < balance.warned then redis.call('HSET', line_key(balance.name), 'warned', int(still)) end
  return {balance = describe(balance), freed = true}
end

function steps.look()
  return {}
end

-- The balances of every call that is open now, by name.
local function held_names()
  local held = {}
  for _, owner in ipairs(redis.call('ZRANGE', p .. 'beats', 0, -1)) do
    for _, id in ipairs(redis.call('SMEMBERS', p .. 'open:' .. owner)) do
      for _, name in ipairs(cjson.decode(redis.call('HGET', call_key(id), 'lines') or '[]')) do held[name] = true end
    end
  end
  return held
end

function steps.held()
  local names = {}
  for name in pairs(held_names()) do names[#names + 1] = name end
  return {names = names}
end

-- The oldest entries give way to a checkpoint that a process has added up; they, and it, have not changed since.
function steps.cut()
  local before = tonumber(redis.call('HGET', meta_key, 'cut') or 0)
  if before ~= a.before then return {} end
  local held = held_names()
  for _, name in ipairs(a.names) do
    -- A call has come to it meanwhile: the next beat plans anew.
    if held[name] then return {} end
  end
  redis.call('LTRIM', p .. 'journal', a.number - before, -1)
  redis.call('SET', p .. 'checkpoint', a.checkpoint)
  redis.call('HSET', meta_key, 'cut', int(a.number))
  for _, id in ipairs(a.calls) do redis.call('DEL', call_key(id)) end
  for _, name in ipairs(a.names) do forget_balance(name) end
  -- At the time of the last entry: upkeep is no event that could move the ledger into another day.
  local clock = now
  now = high
  append('checkpoint', '', {}, {}, a.note)
  now = clock
  return {}
end

-- What must be there is there: the journal, the list of balances, and a sample of them (all, where they are few).
local function check()
  local cut = tonumber(redis.call('HGET', meta_key, 'cut') or 0)
  if redis.call('LLEN', p .. 'journal') ~= last - cut then vanished('part of the journal') end
  local counted = redis.call('HGET', meta_key, 'balances')
  if counted and redis.call('SCARD', p .. 'lines') ~= tonumber(counted) then vanished('the list of balances') end
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', p .. 'resting', '-inf', int(now), 'LIMIT', 0, 1000)) do
    if redis.call('EXISTS', line_key(name)) == 0 then forget_balance(name) end
  end
  for _, name in ipairs(redis.call('SRANDMEMBER', p .. 'lines', a.sample)) do find_balance(name) end
end

-- Says that this owner lives; resolves those that were silent for a lease and those the caller knows to be gone.
function steps.beat()
  check()
  redis.call('HSET', p .. 'owners', a.owner, a.about)
  redis.call('ZADD', p .. 'beats', now, a.owner)
  local dead = redis.call('ZRANGEBYSCORE', p .. 'beats', '-inf', int(now - a.lease_ms))
  for _, owner in ipairs(a.gone) do dead[#dead + 1] = owner end
  local freed = false
  for _, owner in ipairs(dead) do
    for _, id in ipairs(redis.call('SMEMBERS', p .. 'open:' .. owner)) do
      local call = load_call(id)
      if call and call.state == 'reserved' then finish(call, 'release', 'released') end
      if call and call.state == 'dispatched' then
        local held = call.held_prompt + call.held_output
        finish(call, 'charge', 'charged_estimate', call.held_prompt, call.held_output, held)
      end
      freed = true
    end
    for _, id in ipairs(redis.call('ZRANGE', waiters_key, 0, -1)) do
      local stored = redis.call('HGET', p .. 'waiting', id)
      if stored and cjson.decode(stored)[1] == owner then leave(id) end
    end
    redis.call('DEL', p .. 'open:' .. owner)
    redis.call('HDEL', p .. 'owners', owner)
    redis.call('ZREM', p .. 'beats', owner)
  end
  return {freed = freed}
end

local done, answer = pcall(steps[a.op])
if not done then
  if type(answer) ~= 'table' or getmetatable(answer) ~= Vanished then error(answer) end
  redis.call('HSET', meta_key, 'broken', answer.what)
  answer = {error = 'vanished', what = answer.what}
end
return reply(answer)
