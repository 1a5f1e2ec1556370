"""
Every status write of glmq, and the reads that go with them. Each function that is given a `Database` is safe to repeat.

    estimate.py    what a job would have to run, and what is in front of it
    line.py        who stands in line before a job
    new_job.py     the request, with every default filled in
    new_rows.py    the rows of it
    submit.py      a request becomes a job with its grids and images
    fast_submit.py the same by one statement, for jobs that share nothing
    idempotency.py one key, one job
    answers.py     one key, one answer, where no job is made
    tries.py       tries that a client numbers by itself, one job
    reuse.py       grids and images that several jobs share: their keys, and how they are found
    claims.py      how a worker takes a unit, and what it learns of it
    claim_statement.py  its SQL
    candidates.py  the first ready units of each tenant and lane, where not all fit
    at_once.py     what is released without the dispatcher, because nothing waits
    work.py        release, heartbeat, hand back, rescue: the same for grids and images
    past_attempts.py  what is kept of an attempt that is over
    ending.py      how work and jobs end for good, inside the transactions of the others
    finish.py      finish_grid, finish_image, fail: how an attempt ends
    drafts.py      record_draft, hold_grid: how it stops half-way
    previews.py    pictures on the way, which may be lost
    paging.py      one page of a list
    jobs.py        get, list, cancel, expire: what customers and deadlines do
    retry.py       retry: another run of a job that did not succeed
    erasing.py     erase: a job, and what no other job has of what was drawn for it
    retention.py   what has been kept for long enough: events, deliveries, keys
    batches.py     many jobs submitted as one: made, read and canceled
    batch_values.py  a batch and its lines as values
    batch_steps.py the steps of it that the clerk takes
    batch_control.py  append, seal, pause, rename: what its owner does meanwhile
    batch_retry.py another run of what failed in it
    batch_reads.py what became of its lines
    batch_items.py its lines, how they become jobs, and what became of them
    approval.py    approve, reject: what customers say to drafts
    drawn.py       the images of jobs, and the grids they are drawn from
    events.py      the event of a change and its webhook deliveries, inside the change's transaction
    endpoints.py   webhook endpoints
    webhook_secrets.py  what signs webhooks, rotated
    endpoint_health.py  when an endpoint that fails is spared, and when it is given up
    letters.py     what is posted, and where to
    watchers.py    who wants to hear by webhook how far jobs are
    deliveries.py  claim and finish webhook deliveries
    delivery_statements.py  its SQL
    delivery_log.py  what became of them, and replays
    feed.py        read events, those of a job and those of a tenant
    workers.py     which workers live, and what model they loaded
    files.py       files that customers upload, and that batches make
    tenants.py     tenants, their first keys, their source images
    keys.py        API keys, and who asks with one
    quotas.py      what a tenant may have at once, and what it has used
    quota_warnings.py  the event of a tenant that has used most of it
    counts.py      numbers for Prometheus

Rows are locked in the order grid, image, job, endpoint, tenant where a function can choose. Ends (cancel, expire, fail, redraw_grid)
cannot: they go from a job or an image to its grids, and may be a deadlock's victim, which `Database.run` runs again. So may a submit of
several images, which takes grid and image of one after the other.

Whoever locks a unit of work and then writes the output that wants it is safe from the end of another job that has it: that one locks the
unit too, before it asks who else wants it.
The database's clock decides every lease and delay; a worker's clock decides nothing.
"""
