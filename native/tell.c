/*
 * What other sessions are told.
 */
#include "pgh.h"

#include "catalog/pg_tablespace_d.h"
#include "storage/procsignal.h"
#include "storage/sinval.h"

typedef struct Messages
{
	int			n;
	SharedInvalidationMessage all[64];
} Messages;

static void
send_all(Messages *messages)
{
	if (messages->n > 0)
		SendSharedInvalidMessages(messages->all, messages->n);
	messages->n = 0;
}

static SharedInvalidationMessage *
next_message(Messages *messages)
{
	SharedInvalidationMessage *message;

	if (messages->n == lengthof(messages->all))
		send_all(messages);
	message = &messages->all[messages->n++];
	memset(message, 0, sizeof *message);
	return message;
}

static void
relation_message(Messages *messages, Oid lease, Oid relation)
{
	SharedInvalidationMessage *message = next_message(messages);

	message->rc.id = SHAREDINVALRELCACHE_ID;
	message->rc.dbId = lease;
	message->rc.relId = relation;
}

static void
storage_message(Messages *messages, Oid lease, RelNumber node)
{
	SharedInvalidationMessage *message = next_message(messages);

	message->sm.id = SHAREDINVALSMGR_ID;
	message->sm.backend_hi = NOBODY >> 16;
	message->sm.backend_lo = NOBODY & 0xffff;
	MESSAGE_LOCATOR(message) = LOCATOR(DEFAULTTABLESPACE_OID, lease, node);
}

/*
 * Sessions keep of a relation: the root of its index, where the next row belongs, its size, its open files, its description.
 */
void
tell(RewindPlan *plan, Oid lease)
{
	Messages	messages;
	HASH_SEQ_STATUS scan;
	Target	   *target;
	ListCell   *cell;

	messages.n = 0;
	foreach(cell, plan->fresh)
		storage_message(&messages, lease, ((Dirty *) lfirst(cell))->node);
	hash_seq_init(&scan, plan->targets);
	while ((target = hash_seq_search(&scan)) != NULL)
	{
#if PG_VERSION_NUM >= 170000
		/* Where the next row belongs; before 17 it goes with the description. What was cut or dropped was told there. */
		storage_message(&messages, lease, target->node);
#endif
#ifndef PGH_PLANT_NO_RELCACHE
		if (!plan->catalogs)
			relation_message(&messages, lease, target->known->oid);
#endif
	}
#ifndef PGH_PLANT_NO_RELCACHE
	if (plan->catalogs)
	{
		/* Rows of catalogs went back: whatever was kept of any of them is forgotten, plans too. */
		static const Oid catalogs[] = {
#include "catalogs.h"
		};

		for (int i = 0; i < (int) lengthof(catalogs); i++)
		{
			SharedInvalidationMessage *message = next_message(&messages);

			message->cat.id = SHAREDINVALCATALOG_ID;
			message->cat.dbId = lease;
			message->cat.catId = catalogs[i];
		}
		relation_message(&messages, lease, InvalidOid);
	}
#endif
	send_all(&messages);
}

/*
 * Who holds a lock does not look for messages when he uses that relation again: he is woken, and reads them before the next
 * statement, since a session processes its interrupts before it reads from its client, who has not got our answer yet.
 */
void
wake(Oid lease)
{
	for (int i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];

		if (proc->databaseId == lease && proc->pid != 0 && proc->pid != MyProcPid)
			(void) SendProcSignal(proc->pid, PROCSIG_CATCHUP_INTERRUPT, NUMBER_OF(proc));
	}
}
