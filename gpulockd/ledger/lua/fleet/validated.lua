-- validated: the verdict on a document.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)    ARGV[2] digest
-- returns  {'validated', TIME (ms), when it was judged (ms) and the verdict (JSON), or ''}
return fleet.answer('validated', redis.call('HGET', names.validated, ARGV[2]) or '')
