import { expect, test } from 'vitest';
import { forum } from './forum';

const app = forum();

test('a question has a slug of its title', async () => {
  const { id } = await app.student();
  expect(await app.question(id)).toMatchObject({ id: 1, slug: 'how-do-i-test' });
});

test('attachments go with it', async () => {
  const { id } = await app.student();
  const file = (await app.ask('POST', '/questions/attachments', { title: 'log', link: 'log.txt' })).body;
  await app.ask('POST', '/questions', { authorId: id, title: 'How do I test?', content: '?', attachmentIds: [file.id] });
  expect(await app.prisma.attachment.findMany()).toMatchObject([{ link: 'log.txt', questionId: 1 }]);
});
